"""Cross-modal adaptation: a linear head trained on images and texts alike, the texts as further shots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_choice, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import (
    EPSILON,
    check_training,
    equal_weights,
    head_gradient,
    head_logits,
    text_head,
    train,
    with_one,
)
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import text_items

INITIAL = ("text", "zero")


@METHODS.register("cross_modal")
@dataclass(frozen=True, eq=False)
class CrossModal(Method):
    """A linear head w on unit vectors, without intercept, minimises

        (1 - text_weight) mean CE over the support + text_weight mean CE over the texts;

    logits = logit_scale w . f, by AdamW from the texts. The texts are those of all prompts where there are any, else one
    a class. alpha below 1 interpolates with zero-shot classification, as wise_ft does.

    text_weight     0.5: half of each official batch are texts
    alpha           of the trained head; 0 is zero_shot, 0.5 the official variant with WiSE-FT
    initial         "text" starts from zero-shot classification, "zero" from a head of zeros
    text_scale      multiplies the logits of the zero-shot head and, below 1, text_weight; 0 is without any text, from a
                    head of zeros
    steps, learning_rate, weight_decay, epsilon   of AdamW on all images and texts at once, for the head in units of
                    logits; the learning rate follows half a cosine. The official values are 1e-3, 1e-2 and 1e-8 for a head
                    that is multiplied by 100, here 0.1, 1e-4 and 1e-10; 1e-6 keeps rounding errors out

    Deviations: the official program takes 12,800 batches of 8 or 32 after a warm-up and keeps the step that is best on
    a validation set; an episode has none, and this many steps on all of it are about as many passes. Its default start is
    random, which would tell classes apart by their number. Its partial fine-tuning trains the last layers of the
    encoders, which features do not hold.
    """

    paper = "Lin et al. 2023 (Cross-Modal Adaptation), arXiv:2301.06267; linzhiqiu/cross_modal_adaptation"
    needs_text = True
    reads_prompts = True

    text_weight: float = 0.5
    alpha: float = 1.0
    initial: str = "text"
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        check_number("text_weight", self.text_weight, 0, 1)
        check_number("alpha", self.alpha, 0, 1)
        check_choice(INITIAL, initial=self.initial)
        check_training(self.steps, self.learning_rate, text_scale=self.text_scale, weight_decay=self.weight_decay,
                       epsilon=self.epsilon)

    def __call__(self, episodes: Episodes) -> Tensor:
        zero_shot = text_head(episodes, self.text_scale)
        texts, labels, known = text_items(episodes)
        text_weight = self.text_weight * min(self.text_scale, 1)
        points = torch.cat([l2_normalise(episodes.support), texts], 1)
        points = torch.cat([points, torch.zeros_like(points[..., :1])], -1)  # there is no intercept to train
        targets = one_hot(torch.cat([episodes.support_labels, labels], 1), episodes.ways, points.dtype)
        images = equal_weights(torch.ones_like(episodes.support[..., 0]))
        weights = torch.cat([(1 - text_weight) * images, text_weight * equal_weights(known)], 1)
        head = train({"head": zero_shot if self.initial == "text" else torch.zeros_like(zero_shot)},
                     lambda values: {"head": head_gradient(values["head"], points, targets, weights)},
                     self.steps, self.learning_rate, self.weight_decay, self.epsilon)["head"]
        return head_logits((1 - self.alpha) * zero_shot + self.alpha * head, with_one(l2_normalise(episodes.query)))
