"""Implicit MAML: adapted weights are a minimum near the initial ones, whose gradient does not need the way there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import GradientLearner, GradientMethod
from fewshot.methods.contract import METHODS
from fewshot.ops.adapt import at_minimum
from fewshot.ops.inner_loop import Tensors


class ImamlLearner(GradientLearner):
    """Inner steps that keep nothing for the backward pass, and the implicit gradient of where they end."""

    settings: Imaml

    def _loop(self, e: Episodes, statistics: Tensors, at: set[int]) -> tuple[list[Tensor], Tensors, Tensors]:
        """Of the logits at several numbers of steps the last carry a gradient."""
        with torch.no_grad():
            outputs, found, statistics = super()._loop(e, statistics, at)
        if not torch.is_grad_enabled():
            return outputs, found, statistics
        own, last, s = self._weights(), max(at), self.settings
        initial = {name: own[name].expand_as(value) for name, value in found.items()}
        anchor = {name: value.detach() for name, value in initial.items()}

        def scaled(weights: Tensors, _: Tensors) -> Tensor:
            value, _ = self._support_loss(last, weights, statistics, e.support, e.support_labels)
            return value / s.strength + sum((weights[name] - anchor[name]).square().sum() for name in weights) / 2

        weights = at_minimum(scaled, found, initial, {}, s.conjugate_steps, len(e))
        outputs[-1], _ = self._logits(weights, statistics, e.query, last)  # its statistics were recorded above
        return outputs, weights, statistics

    def _step(self, step: int, weights: Tensors, statistics: Tensors, memory: Tensors, support: Tensor,
              labels: Tensor) -> tuple[Tensors, Tensors, Tensors]:
        own, s = self._weights(), self.settings
        weights, found, statistics = self._gradients(step, weights, statistics, support, labels)
        moved = {name: weights[name] - s.inner_lr * (gradient + s.strength * (weights[name] - own[name]))
                 for name, gradient in found.items()}
        return {**weights, **moved}, statistics, memory


@METHODS.register("imaml")
@dataclass(frozen=True, eq=False)
class Imaml(GradientMethod):
    """w_e minimises L_support(w) + strength/2 |w - w_0|^2; training minimises L_query(w_e) by

        dL_query/dw_0 = (I + H / strength)^-1 dL_query/dw_e,   H = d^2 L_support(w_e) / dw_e^2

    The minimum is approached by `inner_steps` steps of gradient descent, the inverse by conjugate gradients in the backward
    pass. Memory does not grow with the steps. The gradient is right as far as they reach the minimum.

    strength          lambda
    conjugate_steps   at most so many; each costs two backward passes. 0 leaves the gradient of first-order MAML

    The other parameters are those of `GradientMethod`; its `first_order` and `checkpoint` change nothing here. With
    batch_norm="batch" L_support and its Hessian are those of the batch. Layers that draw at random (dropout) draw anew for
    the Hessian. Raises FewshotError, in the backward pass, for a layer without a second derivative.
    Deviations: conjugate gradients start from the solution for H = 0 instead of 0, without damping, and stop where a
    direction has no positive curvature; gradient descent alone as inner optimiser.
    """

    paper = "Rajeswaran et al. 2019, arXiv:1909.04630; aravindr93/imaml_dev"
    learner = ImamlLearner

    inner_lr: float = 0.01
    inner_steps: int = 16
    strength: float = 2.0
    conjugate_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(strength=self.strength)
        check_at_least(0, conjugate_steps=self.conjugate_steps)
