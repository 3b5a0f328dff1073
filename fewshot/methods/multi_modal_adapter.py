"""Multi-Modal Adapter: attention between an image and the texts of the classes changes both (a reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.chunked import in_blocks
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, train
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import logit_scale, unit_texts


@METHODS.register("multi_modal_adapter")
@dataclass(frozen=True, eq=False)
class MultiModalAdapter(Method):
    """A reconstruction: no official code was found, and what is not said here of the paper is our choice. Unit vectors of an
    image f and of the texts t_1 ... t_N of all classes become tokens of h = D / reduction channels, x = f A and y_n = t_n B.
    Each token looks at itself and at those of the other kind, a text not at other texts:

        attention = softmax(u Q (v K)^T / sqrt(h)) v V,   f' = ratio attention_x U + (1 - ratio) f,   t_n' alike with W

    logits = text_scale (logit_scale cos(f', t_n') + logit_bias). A, B [D, h], Q, K, V [h, h] and U, W [h, D] are trained on
    the support by cross-entropy; U and W begin at 0, so that steps=0 is `zero_shot`, as ratio=0 is. They know nothing of the
    number of classes, and `transfer` uses them on new ones.

    ratio        0.2 in the paper
    reduction    our choice, as that of `vdt`; one head
    text_scale   multiplies the logits, in training, too. 0 is refused: the texts are all there is to compare with
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support, the learning rate following half a cosine
    seed         of A, B, Q, K and V, uniform with the variance of Xavier's rule, the same for every episode
    """

    paper = "a reconstruction of Seputis et al. 2024 (Multi-Modal Adapter), arXiv:2409.02958"
    needs_text = True

    ratio: float = 0.2
    reduction: int = 4
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epsilon: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        check_integer("reduction", self.reduction, 1)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, weight_decay=self.weight_decay, epsilon=self.epsilon)

    def __call__(self, episodes: Episodes) -> Tensor:
        values: Any = self._trained(episodes)
        return self._logits(episodes, values)

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        values: Any = self._trained(episodes)
        return self._logits(episodes.replace(query=query, text=text), values)

    @differentiates
    def _trained(self, episodes: Episodes) -> Any:
        """The weights that the support leads to, `Tensors`."""
        targets = one_hot(episodes.support_labels, episodes.ways, episodes.support.dtype)
        seen = episodes.replace(query=episodes.support)
        dim = episodes.support.shape[-1]
        hidden = max(1, dim // self.reduction)
        shapes = {"image": (dim, hidden), "text": (dim, hidden), "query": (hidden, hidden), "key": (hidden, hidden),
                  "value": (hidden, hidden)}
        start = {name: uniform(shape, (6 / sum(shape)) ** 0.5, self.seed, name) for name, shape in shapes.items()}
        start |= {name: torch.zeros(hidden, dim) for name in ("to_image", "to_text")}
        start = {name: value.to(targets).expand(len(targets), *value.shape) for name, value in start.items()}
        return train(start, gradient_of(lambda values: cross_entropy(self._logits(seen, values), targets)), self.steps,
                     self.learning_rate, self.weight_decay, self.epsilon)

    def _logits(self, episodes: Episodes, values: Tensors) -> Tensor:
        """[E, Q, N] with the adapter's weights."""
        texts = unit_texts(episodes)  # [E, N, D]
        tokens = texts @ values["text"]
        ways, names = tokens.shape[1], ("query", "key", "value")
        of_text = torch.stack([tokens @ values[name] for name in names], 2)  # [E, N, 3, h]

        def cosines(images: Tensor, texts: Tensor, of_text: Tensor, *weights: Tensor) -> Tensor:
            of = dict(zip(values, weights, strict=True))
            own = images @ of["image"]
            look, key, value = (own @ of[name] for name in names)  # [E, Q, h]
            looks, keys, held = of_text.unbind(2)  # [E, N, h]
            root = look.shape[-1] ** 0.5
            itself = (look * key).sum(-1, keepdim=True)  # [E, Q, 1]
            shares = (torch.cat([itself, look @ keys.transpose(1, 2)], -1) / root).softmax(-1)  # [E, Q, 1 + N]
            seen = shares[..., :1] * value + shares[..., 1:] @ held
            image = self.ratio * seen @ of["to_image"] + (1 - self.ratio) * images
            # A text has two tokens to look at: itself, and the image with this share.
            share = ((key @ looks.transpose(1, 2) - (looks * keys).sum(-1).unsqueeze(1)) / root).sigmoid().unsqueeze(-1)
            mixed = share * value.unsqueeze(2) + (1 - share) * held.unsqueeze(1)  # [E, Q, N, h]
            text = self.ratio * mixed @ of["to_text"].unsqueeze(1) + (1 - self.ratio) * texts.unsqueeze(1)
            return (l2_normalise(text) @ l2_normalise(image).unsqueeze(-1)).squeeze(-1)

        images = l2_normalise(episodes.query)
        found = in_blocks(cosines, images, texts, of_text, *values.values(), elements=ways * images.shape[-1])
        return self.text_scale * (logit_scale(episodes) * found + episodes.logit_bias)
