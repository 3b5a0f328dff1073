"""CLIP-Adapter: a small network on the features of images, trained on the support, under zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, train
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import text_logits


@METHODS.register("clip_adapter")
@dataclass(frozen=True, eq=False)
class CLIPAdapter(Method):
    """Features f become f' = ratio relu(V relu(U f)) + (1 - ratio) f with U [D / reduction, D] and V [D, D / reduction],
    trained on the support by cross-entropy;

        logits = text_scale (logit_scale cos(f', text) + logit_bias).

    ratio = 0 is zero_shot.

    ratio           share of the network, 0.2 in the official code
    reduction       4 there
    text_scale      multiplies the logits, in training, too. 0 is refused: the texts are all there is to compare with
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support, the learning rate following half a cosine.
                    The implementation in astra-vision/ProLIP takes 300 steps, rates from 1e-5 to 1e-2 and the same epsilon
    seed            of U and V, uniform in +-1 / sqrt(inputs) as PyTorch draws them, the same for every episode

    Deviations: the official code takes batches and SGD. Whether features are of unit length when they enter makes no
    difference, there are no intercepts. The paper's second adapter, for texts, is off in the official code.
    """

    paper = "Gao et al. 2021 (CLIP-Adapter), arXiv:2110.04544; gaopengcuhk/CLIP-Adapter"
    needs_text = True

    ratio: float = 0.2
    reduction: int = 4
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    epsilon: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        check_integer("reduction", self.reduction, 1)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, weight_decay=self.weight_decay, epsilon=self.epsilon)

    @differentiates
    def __call__(self, episodes: Episodes) -> Tensor:
        support, query = l2_normalise(episodes.support), l2_normalise(episodes.query)
        targets = one_hot(episodes.support_labels, episodes.ways, support.dtype)

        def logits(values: Tensors, points: Tensor) -> Tensor:
            added = ((points @ values["down"]).relu() @ values["up"]).relu()
            return text_logits(episodes.replace(query=self.ratio * added + (1 - self.ratio) * points), self.text_scale)

        dim = support.shape[-1]
        hidden = max(1, dim // self.reduction)
        start = {name: uniform(shape, shape[0] ** -0.5, self.seed, name).to(support).expand(len(support), *shape)
                 for name, shape in (("down", (dim, hidden)), ("up", (hidden, dim)))}
        values = train(start, gradient_of(lambda values: cross_entropy(logits(values, support), targets)), self.steps,
                       self.learning_rate, self.weight_decay, self.epsilon)
        return logits(values, query)
