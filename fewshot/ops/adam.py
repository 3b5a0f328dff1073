"""Adam for solvers that compute their own gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) on a list of tensors, which are updated in place.

    weight_decay   decoupled from the gradient (AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101)

    Elementwise, so that stacked problems [E, ...] do not influence each other. Unlike torch.optim.Adam it needs no
    autograd and makes fewer passes over the arrays: both bias corrections are moved into the step size and epsilon.
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999),
                 epsilon: float = 1e-8, weight_decay: float = 0.0):
        self.parameters, self.learning_rate, self.betas, self.epsilon, self.weight_decay, self.steps = (
            parameters, learning_rate, betas, epsilon, weight_decay, 0)
        self.first, self.second = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]

    def step(self, gradients: list[Tensor]) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        correction = (1 - beta2**self.steps) ** 0.5
        size = self.learning_rate * correction / (1 - beta1**self.steps)
        for parameter, gradient, first, second in zip(self.parameters, gradients, self.first, self.second, strict=True):
            if self.weight_decay:
                parameter.mul_(1 - self.learning_rate * self.weight_decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            parameter.addcdiv_(first, second.sqrt().add_(self.epsilon * correction), value=-size)


def cosine_rate(learning_rate: float, step: int, steps: int) -> float:
    """The rate of step 0 .. steps-1 that falls from `learning_rate` to 0 along half a cosine (arXiv:1608.03983)."""
    return learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
