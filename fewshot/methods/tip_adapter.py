"""Tip-Adapter: what the texts say, plus votes of the support items by their nearness to the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod, equal_steps
from fewshot.methods.contract import METHODS
from fewshot.ops.adam import Adam, cosine_rate
from fewshot.ops.distances import l2_normalise
from fewshot.ops.key_cache import KeyCache
from fewshot.ops.prototypes import class_sums, one_hot
from fewshot.ops.text import text_logits

EPOCHS, BATCH = 20, 256  # of the official programs
_EPSILON, _DECAY = 1e-4, 0.01  # of AdamW there


@METHODS.register("tip_adapter")
@dataclass(frozen=True)
class TipAdapter(GridMethod):
    """A cache of the support beside the classifier made of texts, without training or with trained keys (Tip-Adapter-F).

        logits_n = text_scale (scale cos(q, w_n) + bias) + alpha sum over support i of class n of exp(-beta (1 - q k_i))

    q, w_n and the keys k_i are queries, texts and support of unit length; scale and bias are those of the model (CLIP: 100
    and 0). alpha=0 is `zero_shot`.

    alpha         weight of the votes of the support; the paper's 1 on ImageNet
    beta          how fast a vote falls with the distance; the paper's 5.5
    text_scale    weight of the texts; 0 leaves them out
    trained       train the keys on the support by cross-entropy of these logits (Tip-Adapter-F)
    steps         of AdamW, whose rate falls from `learning_rate` along a cosine; None is as many as the official program
                  takes, 20 times the support in batches of 256. 0 leaves the keys as they are
    train_alpha, train_beta   the values while training, None for alpha and beta. The official program trains with one pair
                  and then searches another: with both given, a search trains once

    `fewshot.search_grid` tries the official grids of alpha and beta (200 x 20).

    Deviations: keys are trained on the features that they start from, where the program draws another view of each image
    every time, and on all of them in each step, so that the order of the support does not matter. The program takes the
    epoch that is best on the *test* set; here it is the last one. Trained logits carry no gradient.
    """

    paper = "Zhang et al. 2022 (Tip-Adapter), arXiv:2207.09519, 2111.03930; gaopengcuhk/Tip-Adapter"
    needs_text = True
    searched_grid = {"beta": equal_steps(0.1, 7, 200), "alpha": equal_steps(0.1, 3, 20)}
    multipliers = ("alpha",)

    alpha: float = 1.0
    beta: float = 5.5
    text_scale: float = 1.0
    trained: bool = False
    steps: int | None = None
    learning_rate: float = 1e-3
    train_alpha: float | None = None
    train_beta: float | None = None

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, beta=self.beta, text_scale=self.text_scale, steps=self.steps,
                       train_alpha=self.train_alpha, train_beta=self.train_beta)
        check_positive(learning_rate=self.learning_rate)

    @property
    def reused(self) -> tuple[str, ...]:
        return reused_after_training(self.trained, ("alpha", "beta"), self.train_alpha, self.train_beta)

    def shared(self, episodes: Episodes) -> KeyCache:
        support = l2_normalise(episodes.support)
        keys = self._trained_keys(episodes, support) if self.trained else support
        return KeyCache.of(episodes, keys, l2_normalise(episodes.query), self.text_scale)

    def parts(self, shared: KeyCache) -> tuple[Tensor, Tensor]:
        return shared.text, shared.votes(self.beta)

    @torch.no_grad()
    def _trained_keys(self, episodes: Episodes, support: Tensor) -> Tensor:
        """[E, S, D] from unit vectors `support`, by the gradient of their mean cross-entropy, in closed form."""
        alpha = self.alpha if self.train_alpha is None else self.train_alpha
        beta = self.beta if self.train_beta is None else self.train_beta
        labels, ways, shots = episodes.support_labels, episodes.ways, support.shape[1]
        keys, points = support.clone(), support.transpose(1, 2)
        text = text_logits(episodes.replace(query=episodes.support), self.text_scale).transpose(1, 2)  # [E, N, S]
        wanted = one_hot(labels, ways, support.dtype).transpose(1, 2)
        owner = labels.unsqueeze(-1).expand(-1, -1, shots)
        steps = steps_for(self.steps, shots)
        adam = Adam([keys], self.learning_rate, epsilon=_EPSILON, weight_decay=_DECAY)
        for step in range(steps):
            adam.learning_rate = cosine_rate(self.learning_rate, step, steps)
            votes = (beta * (keys @ points - 1)).exp_()  # [E, keys, items]
            errors = (text + alpha * class_sums(votes, labels, ways)[0]).softmax(1) - wanted
            adam.step([(alpha * beta / shots * votes * errors.gather(1, owner)) @ support])
        return keys


def steps_for(steps: int | None, support: int) -> int:
    """`steps`, or as many as the official programs take on a support of this size."""
    return EPOCHS * -(-support // BATCH) if steps is None else steps


def reused_after_training(trained: bool, names: tuple[str, ...], *while_training: float | None) -> tuple[str, ...]:
    """Of the hyper-parameters `names` those that training does not read, as it has values of its own."""
    return tuple(name for name, value in zip(names, while_training, strict=True) if not trained or value is not None)
