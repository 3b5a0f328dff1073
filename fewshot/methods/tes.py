"""TeS: a classifier of images, taught by labels and by what a learned projection says with any model of text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import (
    Tensors,
    check_training,
    cross_entropy,
    differentiates,
    gradient_of,
    head_logits,
    train,
    with_one,
)
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import unit_texts


@METHODS.register("tes")
@dataclass(frozen=True, eq=False)
class TeS(Method):
    """A linear head and a linear projection P into the space of the texts, both on unit features f and trained together on
    the support, with s = cos(P (f, 1), text) / temperature:

        CE(target, head) + lambda_t CE(label, s),     target = (1 - lambda_v) label + lambda_v softmax(s), held fixed.

    logits = head (f, 1): texts take part in training alone, and may come from any model of text, of any length. With
    lambda_v = lambda_t = 0 this is logistic regression by AdamW, from a head of zeros.

    lambda_v, lambda_t, temperature   0.1, 0.3, 0.03 in the official script
    text_scale      multiplies lambda_v and lambda_t; 0 is without any text
    steps, learning_rate, weight_decay   of AdamW on the whole support; the learning rate follows half a cosine
    seed            of P, which starts uniform in +-1: its scale has no say but in how quickly it turns

    Deviations: the paper fine-tunes a whole network by SGD; here features are frozen. P is one layer where the official
    code has two with batch normalisation, as the statistics of a few shots would make an episode's items depend on
    each other.
    """

    paper = "Wang et al. 2023 (TeS), arXiv:2304.01489; idstcv/TeS"
    needs_text = True
    text_of_features = False

    lambda_v: float = 0.1
    lambda_t: float = 0.3
    temperature: float = 0.03
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("lambda_v", self.lambda_v, 0, 1)
        check_number("temperature", self.temperature, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, lambda_t=self.lambda_t, text_scale=self.text_scale,
                       weight_decay=self.weight_decay)
        if self.text_scale * self.lambda_v > 1:
            raise FewshotError(f"text_scale={self.text_scale!r} times lambda_v={self.lambda_v!r} is above 1, more than "
                               "all of a target; lower one of them")

    @differentiates
    def __call__(self, episodes: Episodes) -> Tensor:
        points, texts = with_one(l2_normalise(episodes.support)), unit_texts(episodes)
        labels = one_hot(episodes.support_labels, episodes.ways, points.dtype)
        lambda_v, lambda_t = self.text_scale * self.lambda_v, self.text_scale * self.lambda_t

        def loss(values: Tensors) -> Tensor:
            said = l2_normalise(points @ values["projection"]) @ texts.transpose(1, 2) / self.temperature
            target = (1 - lambda_v) * labels + lambda_v * said.detach().softmax(-1)
            return cross_entropy(head_logits(values["head"], points), target) + lambda_t * cross_entropy(said, labels)

        head = torch.zeros_like(points[:, :1]).expand(-1, episodes.ways, -1)
        shape = (points.shape[-1], texts.shape[-1])
        projection = uniform(shape, 1.0, self.seed, "projection").to(points).expand(len(points), *shape)
        values = train({"head": head, "projection": projection}, gradient_of(loss), self.steps, self.learning_rate,
                       self.weight_decay)
        return head_logits(values["head"], with_one(l2_normalise(episodes.query)))
