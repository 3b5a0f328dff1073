"""SimpleShot: nearest class mean of transformed features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, Method, fitted
from fewshot.ops.distances import cosine, squared_euclidean
from fewshot.ops.features import NORMS, normalise_episodes
from fewshot.ops.point_classifier import PointClassifier, by_cosine, by_distance
from fewshot.ops.prototypes import prototypes


@METHODS.register("simple_shot")
@dataclass(frozen=True, eq=False)
class SimpleShot(BaseMean, Method):
    """logits = -scale |z_q - c_n|^2 with c_n the mean of the transformed support, not normalised again.

    norm    "cl2n" centre by the mean feature of the base classes (needs `fit`), then x/|x|; "l2n" x/|x|; "un" nothing
    metric  "euclidean", or "cosine": logits = scale cos(z_q, c_n), which does normalise the class means
    scale   multiplies the logits; it changes probabilities, not predictions

    The paper predicts the nearest mean and defines no probabilities: the squared distance as logit is our choice.
    `norm="l2n", metric="cosine", scale=10` is the nearest-centroid classifier (NCC) of Luo et al. 2023
    (arXiv:2301.12246); `norm="un", metric="cosine"` is what easyfsl calls SimpleShot when it is not given a mean.
    """

    paper = "Wang et al. 2019, arXiv:1911.04623; mileyan/simple_shot"

    norm: str = "cl2n"
    metric: str = "euclidean"
    scale: float = 1.0
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        check_choice(NORMS, norm=self.norm)
        if self.metric not in ("euclidean", "cosine"):
            raise FewshotError(f"metric={self.metric!r}; choose 'euclidean' or 'cosine'")
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale!r}; it must be positive, or the ranking of the classes is lost")

    def __call__(self, episodes: Episodes) -> Tensor:
        e = normalise_episodes(episodes, self.norm, self.base_mean)
        means = prototypes(e)  # [E, N, D]
        if self.metric == "cosine":
            return self.scale * cosine(e.query, means)
        return -self.scale * squared_euclidean(e.query, means)

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        means = prototypes(normalise_episodes(episodes, self.norm, self.base_mean))[0]
        by, classes = by_cosine if self.metric == "cosine" else by_distance, torch.arange(len(means), device=means.device)
        return by(means, classes, len(means), self.scale, self.norm, self.base_mean)
