"""Neighbourhood component analysis over an episode: no distinction between support and query set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_positive
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import squared_euclidean
from fewshot.training.losses.base import LOSSES, Loss


@LOSSES.register("nca")
@dataclass(frozen=True, eq=False)
class Nca(Loss):
    """mean_i -log(sum_{j != i, y_j = y_i} exp(-|z_i - z_j|^2 / T) / sum_{j != i} exp(-|z_i - z_j|^2 / T)), over all
    support and query embeddings of the episode.

    temperature   T, divides the squared distances; the formula of the paper has none, that is 1

    It does not look at the logits. An embedding without another one of its class is left out. Deviation: computed with
    logarithms of sums, where the public code drops embeddings whose share is below 1e-10, which are those that the loss
    should pull hardest.
    """

    paper = "Laenen and Bertinetto 2021, arXiv:2012.09831; Goldberger et al. 2004"

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)

    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        z = torch.cat([features.support, features.query], dim=1)  # [E, n, D]
        labels = torch.cat([features.support_labels, query_labels], dim=1)
        others = ~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        same = (labels.unsqueeze(2) == labels.unsqueeze(1)) & others  # [E, n, n]
        lonely = ~same.any(-1)
        closeness = -squared_euclidean(z, z) / self.temperature
        every = closeness.masked_fill(~others, -math.inf).logsumexp(-1)  # [E, n]
        # A lonely row would be minus infinity; with all the others in it, it is 0 after the difference.
        own = closeness.masked_fill(~torch.where(lonely.unsqueeze(-1), others, same), -math.inf).logsumexp(-1)
        return ((every - own).sum(-1) / (~lonely).sum(-1).clamp_min(1)).mean()
