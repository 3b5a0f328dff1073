"""MAML with a learned learning rate for every single weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewshot.methods.bases.gradient_learner import GradientLearner, GradientMethod
from fewshot.methods.contract import METHODS


class MetaSgdLearner(GradientLearner):
    """Adds rates of the shapes of the weights."""

    def __init__(self, settings: MetaSgd, *arguments: Any):
        super().__init__(settings, *arguments)
        weights = self._weights()
        self.rates = nn.ParameterList(torch.full_like(weights[name], settings.inner_lr) for name in self.adapted)

    def _rate(self, name: str, step: int) -> Tensor:
        return self.rates[self.adapted.index(name)]


@METHODS.register("meta_sgd")
@dataclass(frozen=True, eq=False)
class MetaSgd(GradientMethod):
    """w' = w - rate * dL_support(w)/dw, elementwise, where rate (of the shape of w) is meta-learned with w. The
    rates may become negative.

    inner_lr   initial value of all rates

    The other parameters are those of `GradientMethod`. One step is the paper's; several share the rates.
    Deviation: the rates start at one constant, as in learn2learn, rather than at random values.
    """

    paper = "Li et al. 2017, arXiv:1707.09835"
    learner = MetaSgdLearner

    inner_lr: float = 0.1
    inner_steps: int = 1
