"""MAML whose head starts as the prototype classifier of the support."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import HEAD, GradientLearner, GradientMethod
from fewshot.methods.contract import METHODS
from fewshot.ops.inner_loop import Tensors
from fewshot.ops.prototypes import prototypes


class ProtoMamlLearner(GradientLearner):
    """Takes episodes of any number of ways."""

    def _initial(self, e: Episodes, statistics: Tensors) -> tuple[Tensors, Tensors]:
        weights, statistics = super()._initial(e, statistics)
        support, statistics = self._features(weights, statistics, e.support, 0)
        means = prototypes(Episodes.trusted(support=support, support_labels=e.support_labels, query=support, ways=e.ways))
        head: tuple[Tensor, Tensor] = 2 * means, -means.square().sum(-1)  # [E, N, D], [E, N]
        return {**weights, **dict(zip(HEAD, head, strict=True))}, statistics


@METHODS.register("proto_maml")
@dataclass(frozen=True, eq=False)
class ProtoMaml(GradientMethod):
    """MAML on all weights with the head W_n = 2 c_n, b_n = -|c_n|^2, c_n the prototype of class n. Without
    inner steps this is ProtoNet. The meta-gradient flows through the initial head into the backbone.

    Parameters: see `GradientMethod`. The defaults are first order and the best configuration of the official code for
    training on ImageNet. There is no head to learn, so episodes may have any number of ways.
    """

    paper = "Triantafillou et al. 2020, arXiv:1903.03096; google-research/meta-dataset"
    has_head = False
    learner = ProtoMamlLearner

    inner_lr: float = 0.00544
    inner_steps: int = 6
    first_order: bool = True
