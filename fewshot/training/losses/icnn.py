"""ICNN: how well the nearest neighbours of an episode's embeddings agree with the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import squared_euclidean
from fewshot.training.losses.base import LOSSES, Loss

_ROOT, _SMALL = 1e-6, 1e-7  # under the root of the distances; added to divisors


@LOSSES.register("icnn")
@dataclass(frozen=True, eq=False)
class Icnn(Loss):
    """mean over episodes of -log((lambda + gamma) / 2), over all n = S + Q embeddings of an episode and the `neighbours`
    k nearest of each, distances d = sqrt(|x - y|^2 + 1e-6):

    lambda   mean of two terms. Same class: 1 - the average of d, divided by the distance to the nearest embedding of
             another class and then by max(1, the largest of the k); averaged over an embedding's neighbours of its
             class, then over the embeddings that have such neighbours. Other classes: the average of d divided by the
             largest such distance in the episode, averaged in the same way; 1 where no neighbour is of another class
    gamma    the share of neighbours of the same class, averaged; it has no gradient

    neighbours   k, 4 in the authors' code; never more than n - 2, and where k + 2 >= n, gamma = 1

    It does not look at the logits. Deviations from the authors' code: an embedding is kept out of its own neighbours by
    its place and not as the nearest one, which differs where embeddings coincide; and all k neighbours count where a
    class has fewer than k embeddings. Their option to use the support or the queries alone is left out. The variance
    term Omega of the paper is commented out there and absent here.
    """

    paper = "Mendez-Ruiz et al. 2023, arXiv:2305.09062 (SuSana Distancia); ICNN: arXiv:2107.06992"

    neighbours: int = 4

    def __post_init__(self) -> None:
        check_at_least(1, neighbours=self.neighbours)

    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        x = torch.cat([features.support, features.query], dim=1)  # [E, n, D]
        labels = torch.cat([features.support_labels, query_labels], dim=1)
        n = x.shape[1]
        k = n - 2 if self.neighbours + 2 >= n else self.neighbours
        if k < 1:
            raise FewshotError(f"an episode of {n} images has no neighbours to compare; use at least 3")
        distances = (squared_euclidean(x, x) + _ROOT).sqrt()  # [E, n, n]
        same = labels.unsqueeze(2) == labels.unsqueeze(1)
        to_other = distances.masked_fill(same, math.inf).amin(-1, keepdim=True)  # [E, n, 1]
        itself = torch.eye(n, dtype=torch.bool, device=x.device)
        near, which = distances.masked_fill(itself, math.inf).topk(k, largest=False)  # [E, n, k]
        same = same.gather(2, which).to(x.dtype)

        scaled = near / (to_other + _SMALL)
        scaled = scaled / scaled.amax(-1, keepdim=True).clamp_min(1)
        compact = 1 - _mean_of_means(scaled, same)  # [E]
        apart = near * (1 - same)
        separate = _mean_of_means(apart / (apart.amax((1, 2), keepdim=True) + _SMALL), 1 - same)
        separate = torch.where(same.amin((1, 2)) > 0, 1 - separate, separate)
        share = same.mean((1, 2)) if k + 2 < n else torch.ones_like(compact)
        return -(((compact + separate) / 2 + share) / 2).log().mean()


def _mean_of_means(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the rows with chosen entries of the mean of these; [E, n, k] -> [E], 0 where there are none."""
    counts = chosen.sum(-1)
    means = (values * chosen).sum(-1) / (counts + _SMALL)
    return means.sum(-1) / ((counts > 0).to(values.dtype).sum(-1) + _SMALL)
