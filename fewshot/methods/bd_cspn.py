"""BD-CSPN: prototypes rectified with the queries after moving these onto the support mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, Method, fitted
from fewshot.ops.distances import cosine, squared_euclidean
from fewshot.ops.features import NORMS, normalise_episodes
from fewshot.ops.rectification import aligned, rectified_prototypes

VARIANTS = ("paper", "code")
QUERIES = ("shifted", "unshifted")


@METHODS.register("bd_cspn")
@dataclass(frozen=True, eq=False)
class BDCSPN(BaseMean, Method):
    """Queries are shifted by mean(support) - mean(query) (cross-class bias), prototypes re-estimated from support and
    queries weighted by cosine similarity (intra-class bias), and queries classified by the new prototypes.

    norm          "cl2n" (needs fit), "l2n" or "un"
    variant       "paper": weights sum to 1 in each class, support counts for its own class, logits cos / temperature.
                  "code": as in the code of LaplacianShot and of the Realistic benchmark: unnormalised weights, support
                  counts for its nearest prototype, logits -|z - w|^2 / temperature, where the shrinkage matters
    queries       "shifted": classify the shifted queries; "unshifted": as they were (Realistic benchmark, easyfsl)
    scale         multiplies the cosines in the weights. "auto": 10 for "code", as there; 1 for "paper", as in easyfsl
                  (exp(10 cos), normalised, leaves nearly all the weight of a single shot on itself: no rectification)
    temperature   divides the logits; no effect on predictions. The default is this project's choice

    Raises FewshotError for values outside these choices, and for norm="cl2n" without fit.
    """

    setting = "transductive"
    assumes = ("balanced queries",)
    paper = ("Liu et al. 2020, arXiv:1911.10713; code in imtiazziko/LaplacianShot and "
              "oveilleux/Realistic_Transductive_Few_Shot")

    norm: str = "cl2n"
    variant: str = "paper"
    queries: str = "shifted"
    scale: float | str = "auto"
    temperature: float = 0.1
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        check_choice(NORMS, norm=self.norm)
        check_choice(VARIANTS, variant=self.variant)
        check_choice(QUERIES, queries=self.queries)
        if self.scale != "auto" and (isinstance(self.scale, str) or not self.scale > 0):
            raise FewshotError(f"scale={self.scale!r}; give a positive number, or 'auto'")
        check_positive(temperature=self.temperature)

    def __call__(self, episodes: Episodes) -> Tensor:
        shifted, paper = aligned(episodes, self.norm, self.base_mean), self.variant == "paper"
        scale = (1.0 if paper else 10.0) if isinstance(self.scale, str) else self.scale
        query, lengths = shifted.query, shifted.query.norm(dim=-1)
        centres = rectified_prototypes(shifted, scale, paper, lengths)
        if self.queries == "unshifted":
            query, lengths = normalise_episodes(episodes, self.norm, self.base_mean).query, None
        scores = cosine(query, centres, lengths) if paper else -squared_euclidean(query, centres)  # [E, Q, N]
        return scores / self.temperature
