"""K-means on support and queries together, started from the class means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_choice
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, IterativeMethod, Refinement, fitted
from fewshot.ops.clustering import ClusteringOptions, cluster
from fewshot.ops.features import NORMS
from fewshot.ops.rectification import aligned


@METHODS.register("kmeans")
@dataclass(frozen=True, eq=False)
class KMeans(BaseMean, IterativeMethod):
    """Hard K-means on the support and the shifted queries; logits = -|z - c|^2 with the final centres c.

    norm            "cl2n" (the published setting; needs fit), "l2n" or "un"
    clamp_support   True: support items always count for their own class (semi-supervised K-means; its objective never
                    increases). False: only at the start, as in the official code, see `fewshot.ops.clustering.cluster`
    max_iterations, tolerance   an episode stops once its objective changes by at most tolerance relative to its size

    Queries are first moved by mean(support) - mean(query). Refinement.prototypes lie in that normalised, shifted space.
    No gradient is provided. Raises FewshotError for values outside these choices, and for norm="cl2n" without fit.
    """

    assumes = ("balanced queries",)
    paper = "Ziko et al. 2021, arXiv:2106.09516 (baseline K-means); imtiazziko/SLK-few-shot"

    norm: str = "cl2n"
    clamp_support: bool = True
    max_iterations: int = 100
    tolerance: float = 1e-4
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        check_choice(NORMS, norm=self.norm)
        self.options()

    def options(self) -> ClusteringOptions:
        """What `cluster` is asked to do; raises FewshotError for a wrong hyper-parameter."""
        return ClusteringOptions(clamp_support=self.clamp_support, max_iterations=self.max_iterations,
                                 tolerance=self.tolerance)

    @torch.no_grad()
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        episodes = aligned(episodes, self.norm, self.base_mean)
        points, shots = torch.cat([episodes.support, episodes.query], dim=1), episodes.support.shape[1]
        found = cluster(points, episodes.support_labels, episodes.ways, self.options(), history)
        logits = found.scores[:, shots:]  # [E, Q, N]
        trace, space = None, None
        if found.history is not None:
            trace, space = [w @ points for w in found.history], episodes
        return Refinement(logits, found.weights @ points, found.iterations, found.converged, trace, space)
