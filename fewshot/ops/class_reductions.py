"""Reductions over the support points of each class, and over classes."""

from __future__ import annotations

import torch
from torch import Tensor


def class_maximum(scores: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Largest of scores [E, Q, S] among the support points of each class, labels [E, S] -> [E, Q, N]."""
    lowest = scores.new_full((*scores.shape[:2], ways), float("-inf"))
    return lowest.scatter_reduce(2, labels.unsqueeze(1).expand_as(scores), scores, "amax")


def class_logsumexp(scores: Tensor, labels: Tensor, ways: int) -> Tensor:
    """log sum exp of scores [E, Q, S] over the support points of each class -> [E, Q, N], without under- or overflow
    and without a tensor of size Q N S."""
    peak = class_maximum(scores.detach(), labels, ways)
    owner = labels.unsqueeze(1).expand_as(scores)
    shifted = (scores - peak.gather(2, owner)).exp()
    return peak + scores.new_zeros(peak.shape).scatter_add(2, owner, shifted).log()


def best_class(scores: Tensor) -> Tensor:
    """Class of the largest of scores [E, N, P], finite, of several equal ones the first -> [E, P]."""
    # Several times faster than argmax, which compares item by item: one byte a class says how far from the end it stands.
    ways = scores.shape[1]
    place = torch.arange(ways, 0, -1, dtype=torch.uint8 if ways < 2**8 else torch.int32, device=scores.device)
    return ways - ((scores == scores.amax(1, keepdim=True)) * place.unsqueeze(1)).amax(1).long()
