"""Nearest support point of each class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.class_reductions import class_maximum
from fewshot.ops.distances import cosine, squared_euclidean
from fewshot.ops.point_classifier import PointClassifier, by_cosine, by_distance


@METHODS.register("nearest_neighbour")
@dataclass(frozen=True, eq=False)
class NearestNeighbour(Method):
    """logits = minus the distance to the nearest support point of the class, so the prediction is the 1-NN label.

    metric  "euclidean": the squared distance, so that with one shot this is ProtoNet; "cosine": 1 - cos

    No number of neighbours is offered: with one to five shots a vote among k > 1 points is mostly ties.
    """

    paper = "1-nearest-neighbour rule, Cover and Hart 1967; the baseline of Vinyals et al. 2016, arXiv:1606.04080"

    metric: str = "euclidean"

    def __post_init__(self) -> None:
        if self.metric not in ("euclidean", "cosine"):
            raise FewshotError(f"metric={self.metric!r}; choose 'euclidean' or 'cosine'")

    def __call__(self, episodes: Episodes) -> Tensor:
        if self.metric == "cosine":
            distances = 1 - cosine(episodes.query, episodes.support)  # [E, Q, S]
        else:
            distances = squared_euclidean(episodes.query, episodes.support)
        return class_maximum(-distances, episodes.support_labels, episodes.ways)  # [E, Q, N]

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        by = by_cosine if self.metric == "cosine" else by_distance
        return by(episodes.support[0], episodes.support_labels[0], episodes.ways, 1.0)
