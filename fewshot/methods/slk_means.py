"""SLK-Means: K-means with a graph Laplacian that lets neighbouring points agree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fewshot.methods.contract import METHODS
from fewshot.methods.kmeans import KMeans
from fewshot.ops.clustering import ClusteringOptions


@METHODS.register("slk_means")
@dataclass(frozen=True, eq=False)
class SLKMeans(KMeans):
    """Alternates means of hard clusters with soft assignments Y that minimise
    sum Y (log Y + |x - c|^2) - laplacian_weight sum Y (WY) over support and shifted queries; softmax(logits) = Y.

    laplacian_weight   lambda; the authors choose it on validation classes among 0.05 .. 1, for each data set and shot,
                       and do not print the choice; 0.7 is the value in their script. 0 turns the graph off: K-means
    neighbours         other points that each point is linked to; the official option knn = 3 counts the point itself

    The other hyper-parameters, the shift of the queries, prototypes and errors are those of `kmeans`.
    """

    paper = "Ziko et al. 2021, arXiv:2106.09516; imtiazziko/SLK-few-shot"

    laplacian_weight: float = 0.7
    neighbours: int = 2

    def options(self) -> ClusteringOptions:
        return dataclasses.replace(super().options(), laplacian_weight=self.laplacian_weight,
                                   neighbours=self.neighbours)
