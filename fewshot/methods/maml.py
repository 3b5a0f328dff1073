"""Model-agnostic meta-learning: an initialisation from which a few gradient steps suffice; with MAML++'s options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewshot.core.checked import check_at_least
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import GradientLearner, GradientMethod, mean_cross_entropy
from fewshot.methods.contract import METHODS

_LEAST = 0.03  # share of its equal weight that a step's loss keeps at the end, as in MAML++'s code


class MamlLearner(GradientLearner):
    """Adds learned rates [adapted tensors][steps] and the loss of every step."""

    settings: Maml
    episodes_seen: Tensor

    def __init__(self, settings: Maml, *arguments: Any):
        super().__init__(settings, *arguments)
        self.rates = nn.ParameterList()
        if settings.learned_rates:
            assert self.head is not None, "has_head"
            one_each = self.head.weight.new_full((max(1, settings.inner_steps),), settings.inner_lr)
            self.rates.extend(one_each.clone() for _ in self.adapted)
        self.register_buffer("episodes_seen", torch.zeros((), dtype=torch.int64))

    def loss(self, episodes: Episodes, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.settings.inner_steps
        if not (self.training and self.settings.multi_step_episodes and steps > 1):
            return super().loss(episodes, query_labels)
        every = self.trajectory(episodes, set(range(1, steps + 1)))  # [steps, E, Q, N]
        losses = torch.stack([mean_cross_entropy(logits, query_labels) for logits in every])
        weights = self.step_weights().to(losses)
        self.episodes_seen += len(episodes)
        return (weights * losses).sum(), every[-1]

    @property
    def plain_loss(self) -> bool:
        return not (self.settings.multi_step_episodes and self.settings.inner_steps > 1)

    def step_weights(self) -> Tensor:
        """Weights [steps] of the losses after 1, 2, .. steps, which sum to 1: equal at first, then the last grows."""
        steps = self.settings.inner_steps
        progress = self.episodes_seen / self.settings.multi_step_episodes
        others = (1 - progress).clamp_min(_LEAST).expand(steps - 1) / steps
        return torch.cat([others, (1 - others.sum()).reshape(1)])

    def _rate(self, name: str, step: int) -> float | Tensor:
        if not self.settings.learned_rates:
            return super()._rate(name, step)
        rates = self.rates[self.adapted.index(name)]
        return rates[min(step, len(rates) - 1)]


@METHODS.register("maml")
@dataclass(frozen=True, eq=False)
class Maml(GradientMethod):
    """w_{s+1} = w_s - inner_lr dL_support(w_s)/dw for all weights; training minimises L_query(w_steps) (algorithm 2).
    `first_order=True` is FOMAML.

    learned_rates         learn a rate for every tensor and inner step, from inner_lr on (MAML++: LSLR); steps beyond
                          inner_steps use the last
    multi_step_episodes   0: the loss is that after the last step. Otherwise a weighted mean of the losses after every
                          step (MAML++: MSL), of equal weights at first; during this many training episodes all but the
                          last shrink linearly to 3 % of that
    batch_norm            "per_step" is MAML++'s: see `BatchNormMode`

    The other parameters are those of `GradientMethod`. The defaults are the paper's for mini-ImageNet, which takes 10
    steps in evaluation; Omniglot there: inner_lr 0.4, 1 step for 5 ways, 0.1 and 5 steps for 20.
    Deviations: the head starts from PyTorch's initialisation. Of MAML++, derivative-order annealing is left out, and the
    weights of the losses change with every episode instead of every epoch.
    """

    paper = ("Finn et al. 2017, arXiv:1703.03400; cbfinn/maml. Antoniou et al. 2019, arXiv:1810.09502; "
              "AntreasAntoniou/HowToTrainYourMAMLPytorch")
    batch_norm_modes = ("batch", "running", "per_step")
    learner = MamlLearner

    learned_rates: bool = False
    multi_step_episodes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, multi_step_episodes=self.multi_step_episodes)
