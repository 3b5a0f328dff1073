"""Class means from labels or from soft assignments."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewshot.episodes.types import Episodes


def one_hot(labels: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """labels [E, S] int64 -> [E, S, N] of `dtype`."""
    # Comparison instead of torch.nn.functional.one_hot: that one makes int64 first, then a cast copies it.
    return (labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)).to(dtype)


def weighted_means(x: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_in x_i / sum_i w_in for x [E, A, D], weights [E, A, N] -> [E, N, D]; a class of weight 0 gets 0."""
    total = weights.sum(1).unsqueeze(-1)  # [E, N, 1]
    return (weights.transpose(1, 2) @ x) / total.clamp_min(torch.finfo(x.dtype).tiny)


def class_sums(x: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each class [E, N, D] and their number [E, N], for x [E, S, D] and labels [E, S]."""
    # Adding rows reads each once; a product with one-hot labels makes N - 1 of N multiplications with 0.
    episodes = torch.arange(len(x), device=labels.device).unsqueeze(1)
    owner = (labels + episodes * ways).flatten()
    sums = x.new_zeros(len(x) * ways, x.shape[-1]).index_add(0, owner, x.flatten(0, 1))
    counts = x.new_zeros(len(x) * ways).index_add(0, owner, x.new_ones(len(owner)))
    return sums.view(len(x), ways, -1), counts.view(len(x), ways)


def prototypes(episodes: Episodes) -> Tensor:
    """Mean of each class's support [E, N, D]; shots are counted from the labels, so they may be unequal."""
    labels, ways = episodes.support_labels, episodes.ways
    shots, rest = divmod(labels.shape[1], ways)
    if not rest and torch.equal(labels, _class_by_class(ways, shots, labels.device).expand_as(labels)):
        count = labels.shape[0]
        groups = episodes.support.reshape(count * ways, shots, -1)
        # A product is faster than a mean along this axis.
        return torch.bmm(groups.new_full((count * ways, 1, shots), 1 / shots), groups).view(count, ways, -1)
    sums, counts = class_sums(episodes.support, labels, ways)
    return sums / counts.clamp_min(1).unsqueeze(-1)


@functools.lru_cache
def _class_by_class(ways: int, shots: int, device: torch.device) -> Tensor:
    """The labels of an episode in the order of the sampler [S]."""
    return torch.arange(ways, device=device).repeat_interleave(shots)
