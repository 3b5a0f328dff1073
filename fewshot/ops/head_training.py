"""Training what lies on frozen features on the support of each episode: what methods with texts share.

A linear head is one tensor [E, N, D + 1], weights and last the intercept, in units of logits: logits = head (f, 1) for unit
features f. So its learning rates do not depend on the scale of the model's logits. A head of an official program, whose
weights are multiplied by a scale s, goes the same way with learning rate s times as large, weight decay and epsilon of Adam
divided by s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.ops.adam import Adam, cosine_rate
from fewshot.ops.inner_loop import gradients
from fewshot.ops.text import logit_scale, unit_texts

Tensors = dict[str, Tensor]
T = TypeVar("T")
# Adam's step along a gradient of rounding errors is as long as any other, unless epsilon is above them. Where the texts are
# sure of every item in the support, there are no others, and 1e-8 would leave the answer to the precision.
EPSILON = 1e-6


def check_training(steps: int, learning_rate: float, **weights: float) -> None:
    """Raise FewshotError for a negative or fractional number of steps, a learning rate that is not above 0, and the first
    of `weights` (of a decay, of a part of the loss) below 0."""
    check_integer("steps", steps, 0)
    check_number("learning_rate", learning_rate, 0, low_allowed=False)
    for name, value in weights.items():
        check_number(name, value, 0)


def differentiates(call: Callable[[Any, Episodes], T]) -> Callable[[Any, Episodes], T]:
    """For the `__call__` of a method, or the part of it, that trains by autograd: evaluations call it in inference mode,
    where nothing can be differentiated; it is then called outside, with copies, which are ordinary tensors again."""
    @functools.wraps(call)
    def outside(self: Any, episodes: Episodes) -> T:
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
            return call(self, episodes.map(lambda x: x.clone() if x.is_inference() else x))

    return outside


@torch.no_grad()
def train(start: Tensors, gradient: Callable[[Tensors], Tensors], steps: int, learning_rate: float,
          weight_decay: float = 0.0, epsilon: float = EPSILON) -> Tensors:
    """`start` after `steps` of AdamW along gradient(values), all of whose tensors it names. The learning rate follows half a
    cosine to 0. Every tensor has a leading axis E; episodes do not influence each other. `start` is not modified."""
    values = {name: value.clone() for name, value in start.items()}
    optimiser = Adam(list(values.values()), learning_rate, epsilon=epsilon, weight_decay=weight_decay)
    for step in range(steps):
        optimiser.learning_rate = cosine_rate(learning_rate, step, steps)
        found = gradient(values)
        optimiser.step([found[name] for name in values])
    return values


def gradient_of(loss: Callable[[Tensors], Tensor]) -> Callable[[Tensors], Tensors]:
    """The gradient of a loss [E] with respect to all its values, by autograd; while gradients are switched off, too."""
    def gradient(values: Tensors) -> Tensors:
        return gradients(lambda values: (loss(values).sum(), {}), values, values, second_order=False)[1]

    return gradient


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """[E] the mean over items of -sum_n targets_n log softmax_n, for logits and targets [E, A, N]."""
    return -(targets * logits.log_softmax(-1)).sum(-1).mean(-1)


def text_head(episodes: Episodes, text_scale: float) -> Tensor:
    """[E, N, D + 1] zero-shot classification as a linear head: text_scale (logit_scale t, logit_bias) for unit texts t."""
    weights = logit_scale(episodes) * unit_texts(episodes)
    return text_scale * torch.cat([weights, torch.full_like(weights[..., :1], episodes.logit_bias)], -1)


def with_one(points: Tensor) -> Tensor:
    """[..., D] -> [..., D + 1], the last channel 1, which the intercept of a head multiplies."""
    return torch.cat([points, torch.ones_like(points[..., :1])], -1)


def head_logits(head: Tensor, points: Tensor) -> Tensor:
    """[E, A, N] of a head and points that end in 1 [E, A, D + 1]."""
    return points @ head.transpose(1, 2)


def equal_weights(counts: Tensor) -> Tensor:
    """[E, A] weights that sum to 1 over the items with a 1 in `counts` [E, A], or are all 0 where there is none."""
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def head_gradient(head: Tensor, points: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """[E, N, D + 1] the gradient of sum_a weights_a CE(targets_a, softmax(logits_a)), whose targets [E, A, N] may be soft:
    then it is that of KL(targets, softmax), too. weights [E, A]."""
    error = (head_logits(head, points).softmax(-1) - targets) * weights.unsqueeze(-1)
    return error.transpose(1, 2) @ points
