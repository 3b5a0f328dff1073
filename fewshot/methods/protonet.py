"""Prototypical Networks: nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.point_classifier import PointClassifier, by_distance
from fewshot.ops.prototypes import prototypes


@METHODS.register("protonet")
@dataclass(frozen=True, eq=False)
class ProtoNet(Method):
    """logits[q, n] = -|z_q - c_n|^2 / temperature with c_n the mean of the support of class n (eq. 1 and 2).

    temperature   divides the logits; the paper and its code use 1
    """

    paper = "Snell et al. 2017, arXiv:1703.05175; jakesnell/prototypical-networks"

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise FewshotError(f"temperature={self.temperature!r}; it must be positive, or the farthest class wins")

    def __call__(self, episodes: Episodes) -> Tensor:
        distances = squared_euclidean(episodes.query, prototypes(episodes), episodes.query_lengths)
        return distances.div_(-self.temperature)  # [E, Q, N]

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        classes = torch.arange(episodes.ways, device=episodes.support.device)
        return by_distance(prototypes(episodes)[0], classes, episodes.ways, 1 / self.temperature)
