"""Reptile: move the initialisation towards the weights that each task's training ends in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import GradientLearner, GradientMethod, mean_cross_entropy
from fewshot.methods.contract import METHODS
from fewshot.ops.inner_loop import Tensors

_OPTIMISERS = ("adam", "sgd")
_DECAY, _EPSILON = 0.999, 1e-8  # beta_2 and epsilon, Adam's usual ones


class ReptileLearner(GradientLearner):
    """Ordinary training on the support; the difference it makes is the meta-gradient."""

    settings: Reptile
    plain_loss = False

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N]. They carry no gradient: train with `loss`."""
        with torch.no_grad():
            return super().forward(episodes)

    def loss(self, episodes: Episodes, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        """(a number whose value is the query cross-entropy of the adapted weights and whose gradient with respect to
        the weights w is w - mean over episodes of the adapted weights; logits)."""
        with torch.no_grad():
            logits, adapted = self._run(episodes, {self.steps})
        logits, own = logits[-1], self._weights()
        pull = torch.stack([(own[name] * (own[name] - adapted[name].mean(0)).detach()).sum()
                            for name in self.adapted]).sum()
        return mean_cross_entropy(logits, query_labels) + (pull - pull.detach()), logits

    def _step(self, step: int, weights: Tensors, statistics: Tensors, memory: Tensors, support: Tensor,
              labels: Tensor) -> tuple[Tensors, Tensors, Tensors]:
        chosen = self._batch(step, labels.shape[1]).to(labels.device)
        support, labels = support[:, chosen], labels[:, chosen]
        if self.settings.inner_optimiser == "sgd":
            return super()._step(step, weights, statistics, memory, support, labels)
        weights, found, statistics = self._gradients(step, weights, statistics, support, labels)
        memory = {name: _DECAY * memory.get(name, 0) + (1 - _DECAY) * g.square() for name, g in found.items()}
        correction = 1 - _DECAY ** (step + 1)
        moved = {name: weights[name] - self._rate(name, step) * g / ((memory[name] / correction).sqrt() + _EPSILON)
                 for name, g in found.items()}
        return {**weights, **moved}, statistics, memory

    def _batch(self, step: int, shots: int) -> Tensor:
        """Positions in the support of inner step `step`: epochs in random orders that are the same for every episode,
        so that an answer is reproducible and does not depend on the episode's place in the batch."""
        s = self.settings
        size = s.inner_batch if self.training else s.eval_batch
        if size is None or size >= shots:
            return torch.arange(shots)
        generator = torch.Generator().manual_seed(s.batch_seed)
        needed = (step + 1) * size
        order = torch.cat([torch.randperm(shots, generator=generator) for _ in range(-(-needed // shots))])
        return order[needed - size : needed]


@METHODS.register("reptile")
@dataclass(frozen=True, eq=False)
class Reptile(GradientMethod):
    """w <- w + epsilon mean_e(w_e - w), where w_e are the weights after ordinary training on the support of episode e
    (algorithm 2). The training loop sees w - mean_e(w_e) as the gradient: optimiser "sgd" with momentum 0 and learning
    rate epsilon is the paper's update; the query set only measures.

    inner_optimiser   "adam" without momentum (beta_1 = 0), or "sgd"
    inner_batch       images per inner step in training, eval_batch in evaluation; None or more than there are: the
                      whole support
    batch_seed        of the order of the images

    The other parameters are those of `GradientMethod`; its `first_order` and `checkpoint` change nothing here. The
    defaults are the paper's for 1-shot mini-ImageNet, trained on episodes of 15 shots, epsilon going from 1 to 0.
    Deviation: Adam's second moments start anew in every episode; the official code carries them on from task to task in
    training.
    """

    paper = "Nichol et al. 2018, arXiv:1803.02999; openai/supervised-reptile"
    learner = ReptileLearner

    inner_lr: float = 1e-3
    inner_steps: int = 8
    eval_steps: int | None = 50
    inner_optimiser: str = "adam"
    inner_batch: int | None = 10
    eval_batch: int | None = 5
    batch_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(_OPTIMISERS, inner_optimiser=self.inner_optimiser)
        check_at_least(1, inner_batch=self.inner_batch, eval_batch=self.eval_batch)
        check_at_least(0, batch_seed=self.batch_seed)
