"""VDT (CLIP-A-self): attention among the sentences about a class, trained on the support, makes its text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fewshot.core.checked import check_choice, check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, train
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import present_prompts, text_logits


@METHODS.register("vdt")
@dataclass(frozen=True, eq=False)
class VDT(Method):
    """The sentences x [M, D] of a class (`episodes.prompts`) look at each other, and their mean is its text:

        a = softmax(x Q (x K)^T / sqrt(h)) x V O + b,     text = mean over sentences of ratio a + (1 - ratio) x

    with Q, K, V [D, h], O [h, D], b [D] and h = D / reduction shared by the classes, trained on the support by cross-entropy
    of the logits of `zero_shot` with these texts. Features of images stay. O and b begin at 0: with steps=0, and with
    ratio=0, it is `zero_shot` by the plain average of the sentences. New classes of which there is a text alone
    (`transfer`) have it as their only sentence.

    ratio        share of the attention; the official scripts have 0.1 to 0.7, tuned for each data set and number of shots
    reduction    4 in the official code
    text_scale   multiplies the logits, in training, too. 0 is refused: the texts are all there is to compare with
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support, the learning rate following half a cosine
    seed         of Q, K, V (and O), uniform with the variance of Xavier's rule, the same for every episode
    variant      "official" has layer normalisation of 2 (ratio a + (1 - ratio) x) with gains and shifts that are trained,
                 too, so that ratio=0 is no plain average, and O begins at random

    Deviations: the official code takes batches of one image, SGD, dropout of half of a and a tenth of the attention, and a
    normal distribution at the beginning.
    """

    paper = "Maniparambil et al. 2023 (VDT, CLIP-A-self), arXiv:2307.11661; mayug/VDT-Adapter"
    needs_text = True
    reads_prompts = True

    ratio: float = 0.2
    reduction: int = 4
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epsilon: float = 1e-4
    seed: int = 0
    variant: str = "sane"

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        check_integer("reduction", self.reduction, 1)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, weight_decay=self.weight_decay, epsilon=self.epsilon)
        check_choice(("sane", "official"), variant=self.variant)

    def __call__(self, episodes: Episodes) -> Tensor:
        return self._logits(episodes, self._trained(episodes))

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        new = episodes.replace(query=query, text=text, prompts=text.unsqueeze(2))
        return self._logits(new, self._trained(episodes))

    @differentiates
    def _trained(self, episodes: Episodes) -> Tensors:
        """The weights that the support leads to."""
        targets = one_hot(episodes.support_labels, episodes.ways, episodes.support.dtype)
        seen = episodes.replace(query=episodes.support)
        slope = gradient_of(lambda values: cross_entropy(self._logits(seen, values), targets))
        return train(self._start(episodes), slope, self.steps, self.learning_rate, self.weight_decay, self.epsilon)

    def _start(self, episodes: Episodes) -> Tensors:
        prompts, _ = present_prompts(episodes)
        dim = prompts.shape[-1]
        hidden = max(1, dim // self.reduction)
        gains = {"query": 1.0, "key": 1.0, "value": 0.67, "out": 0.67 if self.variant == "official" else 0.0}
        bound = (6 / (dim + hidden)) ** 0.5
        start = {name: uniform((hidden, dim) if name == "out" else (dim, hidden), gain * bound, self.seed, name)
                 for name, gain in gains.items()}
        start["bias"] = torch.zeros(1, dim)
        if self.variant == "official":
            start |= {"gain": torch.ones(1, dim), "shift": torch.zeros(1, dim)}
        return {name: value.to(prompts).expand(len(prompts), *value.shape) for name, value in start.items()}

    def _logits(self, episodes: Episodes, values: Tensors) -> Tensor:
        """[E, Q, N] by the texts that the weights make of the sentences."""
        prompts, present = present_prompts(episodes)  # [E, N, M, D], [E, N, M]
        weights = {name: value.unsqueeze(1) for name, value in values.items()}  # for every class of an episode
        looks, keys = prompts @ weights["query"], prompts @ weights["key"]
        scores = looks @ keys.transpose(-1, -2) / looks.shape[-1] ** 0.5  # [E, N, M, M]
        attention = scores.masked_fill(~present.unsqueeze(2), -torch.inf).softmax(-1)
        added = attention @ (prompts @ weights["value"]) @ weights["out"] + weights["bias"]
        mixed = self.ratio * added + (1 - self.ratio) * prompts
        if self.variant == "official":
            mixed = layer_norm(2 * mixed, mixed.shape[-1:]) * weights["gain"] + weights["shift"]
        shares = present / present.sum(-1, keepdim=True)
        text = (shares.unsqueeze(-2).to(mixed.dtype) @ mixed).squeeze(-2)
        return text_logits(episodes.replace(text=text), self.text_scale)
