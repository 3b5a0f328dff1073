"""Logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, Refinement, TwoStageMethod, fitted
from fewshot.ops.features import NORMS, normalise_episodes
from fewshot.ops.linear import fit_logistic
from fewshot.ops.point_classifier import PointClassifier, by_products
from fewshot.ops.span import to_support_span


@METHODS.register("logistic_regression")
@dataclass(frozen=True, eq=False)
class LogisticRegression(BaseMean, TwoStageMethod):
    """Multinomial logistic regression fitted to the normalised support of each episode, the classifier of RFS.

    C               weight of the cross-entropy, summed over the support, against |W|^2 / 2; the intercept is free
    norm            "l2n" x/|x| as in the paper, "cl2n" (needs `fit`), or "un" for features used as they are
    max_iterations  Newton steps; an episode that needs more is reported by `refine` as not converged
    tolerance       on the gradient relative to its natural size; None is eps^(3/4) of the dtype (`ops.linear`)

    Deviations: the problem is solved to convergence by a batched Newton method, where RFS calls scikit-learn with its
    default tolerance, which stops before the optimum. The published protocol fits on five
    augmented copies of every support image; here the support is what the episode holds. With two classes the softmax
    model equals scikit-learn's sigmoid model with 2C in place of C. Logits carry no gradient: for training through a
    linear head use `ridge`.
    """

    setting = "inductive"
    paper = "Tian et al. 2020, arXiv:2003.11539, section 3; WangYueFt/rfs eval/meta_eval.py"

    C: float = 1.0
    norm: str = "l2n"
    max_iterations: int = 100
    tolerance: float | None = None
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        if not self.C > 0:
            raise FewshotError(f"C={self.C!r}; it must be positive (a larger C regularises less)")
        check_choice(NORMS, norm=self.norm)
        check_at_least(1, max_iterations=self.max_iterations)
        check_positive(tolerance=self.tolerance)

    @torch.no_grad()
    def reduce(self, episodes: Episodes) -> Episodes:
        return to_support_span(normalise_episodes(episodes, self.norm, self.base_mean))

    @torch.no_grad()
    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        """Fit and classify. There are no prototypes, hence no history; `ops.linear.fit_logistic` gives the weights."""
        model = fit_logistic(reduced.support, reduced.support_labels, reduced.ways, self.C, self.max_iterations,
                             self.tolerance)
        return Refinement(model(reduced.query), None, model.iterations, model.converged)

    def point_classifier(self, episodes: Episodes) -> PointClassifier:
        e = normalise_episodes(episodes, self.norm, self.base_mean)
        fit = fit_logistic(e.support, e.support_labels, e.ways, self.C, self.max_iterations, self.tolerance)
        return by_products(fit, 1.0, self.norm, self.base_mean)
