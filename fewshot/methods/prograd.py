"""ProGrad: a head trained on the support along gradients that do not contradict zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.adam import cosine_rate
from fewshot.ops.distances import l2_normalise, nonzero
from fewshot.ops.head_training import (
    check_training,
    equal_weights,
    head_gradient,
    head_logits,
    text_head,
    with_one,
)
from fewshot.ops.prototypes import one_hot


@METHODS.register("prograd")
@dataclass(frozen=True, eq=False)
class ProGrad(Method):
    """A linear head on unit features f starts as zero-shot classification (logit_scale text, logit_bias). Each step goes
    along the gradient a of the cross-entropy on the support; where it contradicts the gradient b of
    KL(zero-shot, head), that is where a . b < 0, that part is taken off:

        a - conflict (a . b / |b|^2) b.

    logits = head (f, 1). With conflict = 0 this is gradient descent on the cross-entropy, with 1 no step raises the
    divergence from zero-shot classification to first order.

    conflict        lambda, 1 in the paper
    temperature     divides the logits of both sides of the divergence; 1 in the paper
    text_scale      multiplies the logits of the zero-shot head; 0 keeps to uniform probabilities instead, without any text
    steps, learning_rate   of gradient descent on the whole support: the first step is learning_rate * ways long, times the
                    gradient, and the next ones follow half a cosine. In units of logits the mean loss of balanced classes
                    has a curvature of about 2 / ways, whatever the scale of the model

    Deviations: the paper learns the prompts of CoOp, and applies its rule to each tensor of parameters; here there is
    one, the head of an episode. Gradient descent has no momentum, which would add steps that the rule did not see.
    """

    paper = "Zhu et al. 2023 (ProGrad), arXiv:2205.14865; BeierZhu/Prompt-align"
    needs_text = True

    conflict: float = 1.0
    temperature: float = 1.0
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, conflict=self.conflict, text_scale=self.text_scale)

    def __call__(self, episodes: Episodes) -> Tensor:
        return head_logits(self._trained(episodes), with_one(l2_normalise(episodes.query)))

    @torch.no_grad()
    def _trained(self, episodes: Episodes) -> Tensor:
        points, head = with_one(l2_normalise(episodes.support)), text_head(episodes, self.text_scale)
        targets = one_hot(episodes.support_labels, episodes.ways, points.dtype)
        weights = equal_weights(torch.ones_like(points[..., 0]))
        cooled = points / self.temperature
        zero_shot = head_logits(head, cooled).softmax(-1)
        for step in range(self.steps):
            wanted = head_gradient(head, points, targets, weights)
            kept = head_gradient(head, cooled, zero_shot, weights)
            rate = cosine_rate(self.learning_rate * episodes.ways, step, self.steps)
            head = head - rate * without_conflict(wanted, kept, self.conflict)
        return head


def without_conflict(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a [E, ...] less `share` of its part along b in episodes where a . b < 0; at share 1, a . b is then 0."""
    inner, square = ((x * b).flatten(1).sum(1) for x in (a, b))
    part = share * inner.clamp_max(0) / nonzero(square)
    return a - part.view(-1, *[1] * (a.ndim - 1)) * b
