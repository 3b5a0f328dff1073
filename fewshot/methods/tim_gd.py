"""TIM-GD: transductive information maximisation by gradient descent on the prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot.core.checked import check_at_least, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.distances import l2_normalise, squared_euclidean
from fewshot.ops.entropy import check_weights, maximise_information


@METHODS.register("tim_gd")
@dataclass(frozen=True, eq=False)
class TIMGD(IterativeMethod):
    """Prototypes w that minimise, over unit-length features z with p = softmax(-scale / 2 |z - w|^2),

        cross_entropy * CE(support) - marginal * H(mean of p over queries) + conditional * mean of H(p) over queries

    by Adam from the class means. logits = -scale / 2 |z - w|^2.

    cross_entropy, marginal, conditional   0.1, 1, 0.1 in the paper; 1, 1, 1 in Veilleux et al. 2021 for queries of
                                           unequal class frequencies. The marginal term pulls towards balanced classes.
    scale                                  tau, 15
    iterations, learning_rate              1000 steps in the published runs (their configuration file says 150)

    Adam is not rotation invariant, so this works in the full feature space, not in the span of the points.
    The official code adds 1e-12 inside the conditional entropy's logarithm; here p log p is taken as 0 at p = 0.
    """

    paper = "Boudiaf et al. 2020, arXiv:2008.11297; mboudiaf/TIM"

    cross_entropy: float = 0.1
    marginal: float = 1.0
    conditional: float = 0.1
    scale: float = 15.0
    iterations: int = 1000
    learning_rate: float = 1e-4

    @property
    def assumes(self) -> tuple[str, ...]:
        return ("balanced queries",) if self.marginal > 0 else ()

    def __post_init__(self) -> None:
        check_weights(self.cross_entropy, self.marginal, self.conditional)
        check_positive(scale=self.scale, learning_rate=self.learning_rate)
        check_at_least(0, iterations=self.iterations)

    @torch.no_grad()
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        episodes = episodes.with_features(l2_normalise)
        means, trace = maximise_information(episodes, self.scale, (self.cross_entropy, self.marginal, self.conditional),
                                            self.entropy_order(episodes), self.iterations, self.learning_rate, history)
        logits = squared_euclidean(episodes.query, means) * (-self.scale / 2)  # [E, Q, N]
        return Refinement.of_fixed_steps(logits, means, self.iterations, trace or None,
                                         episodes if history else None)

    def entropy_order(self, episodes: Episodes) -> float:
        """alpha of Tsallis' entropy; 1 is Shannon's."""
        return 1.0
