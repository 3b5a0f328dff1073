"""AMU-Tuning: zero-shot classification corrected by a linear head on the features of a second network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_choice, check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, head_logits, train
from fewshot.ops.heads import class_means
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import text_logits

UNCERTAINTY = ("kurtosis", "none")
VARIANTS = ("sane", "official")


@METHODS.register("amu")
@dataclass(frozen=True, eq=False)
class AMU(Method):
    """The first channels of the features, as many as the texts have, are those of the model of the texts; the others are
    auxiliary, of any network: `fewshot join`, or `concatenate([bank, auxiliary_bank])` of `fewshot.data.banks`, makes a bank
    of both, whose texts stay those of the first. A linear head w on unit auxiliary features g starts at their class means;
    its scores a are standardised over the classes of each query:

        logits = t + bias kappa a,     t = text_scale (logit_scale cos(f, text) + logit_bias).

    Trained on the support: fusion CE(logits) + (1 - fusion) CE(a). No step is the training-free form; bias = 0 is zero_shot.

    bias            alpha, 0.5
    fusion          lambda, 0.35 in the official script
    uncertainty     "kurtosis": kappa = (r / kurtosis of softmax(t) over the classes)^power: the surer the texts, the less a
                    says; r = ways / 4. "none": kappa = 1, as the official script has it
    power           0.4
    text_scale      0 is without any text: t = 0 and kappa = 1
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support, the learning rate following half a cosine;
                    0.01, 1e-3 and 1e-4 are official
    variant         "official": r = 250, which is that of the 1,000 classes of ImageNet, for any number of them

    Deviations: 100 steps on the whole support in place of 50 epochs of batches of 8, and the last one instead of the best on
    the test set. Scores that are the same for all classes count as 0, where the official code divides by 0.
    """

    paper = "Tang et al. 2024 (AMU-Tuning), arXiv:2404.08958; TJU-sjyj/AMU-Tuning"
    needs_text = True
    text_of_features = False
    assumes = ("features of a second network",)

    bias: float = 0.5
    fusion: float = 0.35
    uncertainty: str = "kurtosis"
    power: float = 0.4
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epsilon: float = 1e-4
    variant: str = "sane"

    def __post_init__(self) -> None:
        check_number("fusion", self.fusion, 0, 1)
        check_choice(UNCERTAINTY, uncertainty=self.uncertainty)
        check_choice(VARIANTS, variant=self.variant)
        check_training(self.steps, self.learning_rate, bias=self.bias, power=self.power, text_scale=self.text_scale,
                       weight_decay=self.weight_decay, epsilon=self.epsilon)

    @differentiates
    def __call__(self, episodes: Episodes) -> Tensor:
        assert episodes.text is not None, "the contract"
        of_text, channels = episodes.text.shape[-1], episodes.query.shape[-1]
        if of_text >= channels:
            raise FewshotError(f"features of {channels} channels beside texts of {of_text} leave none for a second network; "
                               "put its features beside those (`fewshot join`, the bank with texts first)")
        main = episodes.with_features(lambda x: x[..., :of_text])
        auxiliary = episodes.with_features(lambda x: l2_normalise(x[..., of_text:]))
        targets = one_hot(episodes.support_labels, episodes.ways, main.support.dtype)
        said = self._said(main.replace(query=main.support))

        def loss(values: Tensors) -> Tensor:
            scores = _standardised(head_logits(values["head"], auxiliary.support))
            own = (1 - self.fusion) * cross_entropy(scores, targets)
            return self.fusion * cross_entropy(self._joined(said, scores), targets) + own

        start = {"head": class_means(auxiliary.support, episodes.support_labels, episodes.ways)}
        head = train(start, gradient_of(loss), self.steps, self.learning_rate, self.weight_decay, self.epsilon)["head"]
        return self._joined(self._said(main), _standardised(head_logits(head, auxiliary.query)))

    def _said(self, main: Episodes) -> tuple[Tensor, Tensor]:
        """(t [E, Q, N], kappa [E, Q, 1]) of the queries."""
        logits = text_logits(main, self.text_scale)
        if self.uncertainty == "none" or self.text_scale == 0:
            return logits, torch.ones_like(logits[..., :1])
        ways = logits.shape[-1]
        # The least that it can be is that of two equal halves; 0 comes from equal probabilities alone.
        kurtosis = _standardised(logits.softmax(-1)).pow(4).mean(-1, keepdim=True).clamp_min((1 - 1 / ways) ** 2)
        reference = 250 if self.variant == "official" else ways / 4
        return logits, (reference / kurtosis) ** self.power

    def _joined(self, said: tuple[Tensor, Tensor], scores: Tensor) -> Tensor:
        logits, factor = said
        return logits + self.bias * factor * scores


def _standardised(scores: Tensor) -> Tensor:
    """Mean 0 and (unbiased) variance 1 over the classes; equal scores become 0."""
    return l2_normalise(scores - scores.mean(-1, keepdim=True)) * math.sqrt(scores.shape[-1] - 1)
