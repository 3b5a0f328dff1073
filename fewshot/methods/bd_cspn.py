"""BD-CSPN: prototypes rectified with the queries after moving these onto the support mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from fewshot.banks import FeatureBank
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.methods.base import METHODS, Method, fitted
from fewshot.ops.distances import cosine, squared_euclidean
from fewshot.ops.features import normalise_episodes
from fewshot.ops.rectification import aligned_points, rectified_prototypes

VARIANTS = ("paper", "code")
QUERIES = ("shifted", "unshifted")


@METHODS.register("bd_cspn")
@dataclass(frozen=True, eq=False)
class BDCSPN(Method):
    """Queries are shifted by mean(support) - mean(query) (eq. 7), prototypes re-estimated from support and queries
    weighted by cosine similarity (eq. 5 and 6), and queries classified by the new prototypes.

    norm      "cl2n" (needs fit), "l2n" or "un"
    scale     multiplies the cosines in the weights and, for variant "paper", in the logits; the paper uses 10 for the
              weights
    variant   "paper": weights sum to 1 in each class, support counts for its own class, logits scale * cosine.
              "code": as in the code of LaplacianShot and of the Realistic benchmark (unnormalised weights, support counts
              for its nearest prototype), logits -|z - w|^2, where the shrunken prototypes matter
    queries   "shifted": classify the shifted queries; "unshifted": as they were (Realistic benchmark, easyfsl)

    Raises FewshotError for values outside these choices, and for norm="cl2n" without fit.
    """

    setting = "transductive"
    assumes = ("balanced queries",)
    source = "Liu et al. 2020, arXiv:1911.10713; code in imtiazziko/LaplacianShot, oveilleux/Realistic_Transductive_Few_Shot"

    norm: str = "cl2n"
    scale: float = 10.0
    variant: str = "paper"
    queries: str = "shifted"
    base_mean: Tensor | None = fitted()

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise FewshotError(f"variant={self.variant!r}; choose one of {', '.join(VARIANTS)}")
        if self.queries not in QUERIES:
            raise FewshotError(f"queries={self.queries!r}; choose one of {', '.join(QUERIES)}")
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale}; give a positive number")

    @property
    def needs_base(self) -> bool:
        return self.norm == "cl2n"

    def fit(self, base_bank: FeatureBank) -> BDCSPN:
        return dataclasses.replace(self, base_mean=base_bank.features.mean(0))

    def __call__(self, episodes: Episodes) -> Tensor:
        episodes = normalise_episodes(episodes, self.norm, self.base_mean)
        points = aligned_points(episodes)
        centres = rectified_prototypes(points, episodes.support_labels, episodes.ways, self.scale,
                                       normalised=self.variant == "paper")
        query = points[:, episodes.support.shape[1]:] if self.queries == "shifted" else episodes.query
        if self.variant == "paper":
            return self.scale * cosine(query, centres)  # [E, Q, N]
        return -squared_euclidean(query, centres)
