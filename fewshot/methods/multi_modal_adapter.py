"""Multi-Modal Adapter: attention among the texts of the classes and one image, trained on the support, moves both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from fewshot.core.checked import check_choice, check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.chunked import in_blocks
from fewshot.ops.distances import l2_normalise
from fewshot.ops.head_training import Tensors, check_training, cross_entropy, differentiates, gradient_of, train, with_one
from fewshot.ops.heads import uniform
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import logit_scale, unit_texts


@METHODS.register("multi_modal_adapter")
@dataclass(frozen=True, eq=False)
class MultiModalAdapter(Method):
    """The texts t_1 .. t_N of the classes and one image f are a sequence of N + 1 unit vectors x. An adapter A projects them
    to few channels, lets each look at all of them (attention with `heads`), and projects back; then

        x' = unit(ratio A(x) + (1 - ratio) x),     logits = text_scale (logit_scale cos(f', t'_n) + logit_bias),

    trained on the support by cross-entropy. A text thus becomes another one for each image. The last projection begins at
    0: with steps=0, and with ratio=0, it is `zero_shot`. Other classes (`transfer`) pass through the same adapter.

    ratio         share of the adapter, 0.2 in the paper
    across        added to the scores with which a text looks at the image, and the image at a text. The official mask has a
                  1 there and 0 elsewhere; it is given to PyTorch as numbers, which are added to the scores: nothing is
                  hidden. 0 is plain attention; the larger, the less texts look at texts
    heads, reduction, bottleneck   4 heads of D / (4 reduction) channels, 4 and 32 in the official code: projections go
                  from D to 32 to D / reduction, and by a GELU from there to 32 to D
    text_scale    multiplies the logits, in training, too. 0 is refused: the texts are all there is to compare with
    steps, learning_rate, weight_decay, epsilon   of AdamW on the whole support, the learning rate following half a cosine;
                  0.01 and 1e-4 are official
    seed          of the weights, drawn from the distributions of PyTorch's layers, the same for every episode
    variant       "official": A(x) is made unit length before it is added, and its last projection begins at random

    Deviations: the official code takes batches of 64 images, Adam with decay in the gradient at a constant rate, and the
    epoch that is best on validation images.
    """

    paper = "Seputis et al. 2024 (Multi-Modal Adapter), arXiv:2409.02958; dqmis/clip-mma"
    needs_text = True

    ratio: float = 0.2
    across: float = 1.0
    heads: int = 4
    reduction: int = 4
    bottleneck: int = 32
    text_scale: float = 1.0
    steps: int = 100
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    epsilon: float = 1e-6
    seed: int = 0
    variant: str = "sane"

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        check_number("across", self.across)
        for name in ("heads", "reduction", "bottleneck"):
            check_integer(name, getattr(self, name), 1)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)
        check_training(self.steps, self.learning_rate, weight_decay=self.weight_decay, epsilon=self.epsilon)
        check_choice(("sane", "official"), variant=self.variant)

    def __call__(self, episodes: Episodes) -> Tensor:
        return self._answer(episodes, self._trained(episodes))

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        return self._answer(episodes.replace(query=query, text=text), self._trained(episodes))

    @differentiates
    def _trained(self, episodes: Episodes) -> Tensors:
        """What the support teaches."""
        support, texts = l2_normalise(episodes.support), unit_texts(episodes)
        targets = one_hot(episodes.support_labels, episodes.ways, support.dtype)

        def loss(values: Tensors) -> Tensor:
            return cross_entropy(self._scaled(episodes, self._cosines(support, texts, values)), targets)

        return train(self._start(support), gradient_of(loss), self.steps, self.learning_rate, self.weight_decay,
                     self.epsilon)

    def _answer(self, episodes: Episodes, values: Tensors) -> Tensor:
        texts = unit_texts(episodes)

        def cosines(points: Tensor, texts: Tensor, *layers: Tensor) -> Tensor:
            return self._cosines(points, texts, dict(zip(values, layers, strict=True)))

        return self._scaled(episodes, in_blocks(cosines, l2_normalise(episodes.query), texts, *values.values(),
                                                elements=texts.shape[1] * (self.bottleneck + 1)))

    def _scaled(self, episodes: Episodes, cosines: Tensor) -> Tensor:
        return self.text_scale * (logit_scale(episodes) * cosines + episodes.logit_bias)

    def _start(self, support: Tensor) -> Tensors:
        """Layers [E, inputs + 1, outputs], the last row the intercept."""
        dim, narrow = support.shape[-1], self.bottleneck
        hidden = self.heads * max(1, dim // (self.heads * self.reduction))
        linear = {"in": (dim, narrow), "down": (narrow, hidden), "narrow": (hidden, narrow), "up": (narrow, dim)}
        start = {name: uniform((inputs + 1, outputs), inputs**-0.5, self.seed, name)
                 for name, (inputs, outputs) in linear.items()}
        if self.variant != "official":
            start["up"] = torch.zeros_like(start["up"])
        # Attention begins without intercepts; PyTorch draws the maps into the heads as one, of 3 h outputs.
        into = (6 / (4 * hidden)) ** 0.5
        for name, bound in (("query", into), ("key", into), ("value", into), ("join", hidden**-0.5)):
            start[name] = torch.cat([uniform((hidden, hidden), bound, self.seed, name), torch.zeros(1, hidden)])
        return {name: layer.to(support).expand(len(support), *layer.shape) for name, layer in start.items()}

    def _cosines(self, points: Tensor, texts: Tensor, values: Tensors) -> Tensor:
        """cos(f', t'_n) [E, A, N] of unit points [E, A, D] and texts [E, N, D].

        Only arrays of `bottleneck` channels have an entry for each pair of an image and a class: what a text sees is a
        mixture of what it sees among texts and of the image, with a share [E, H, N, A] for each head, and inner products
        with t'_n are those with the columns of the last projection.
        """
        (looks_t, keys_t, seen_t), (looks_f, keys_f, seen_f) = (self._projected(x, values) for x in (texts, points))
        among = looks_t @ keys_t.transpose(2, 3)  # [E, H, N, N]
        of_image = torch.cat([looks_f @ keys_t.transpose(2, 3) + self.across, (looks_f * keys_f).sum(-1, keepdim=True)],
                             -1).softmax(-1)  # [E, H, A, N + 1]
        share = (looks_t @ keys_f.transpose(2, 3) + self.across - among.logsumexp(-1, keepdim=True)).sigmoid()

        # Joining the heads and narrowing are linear: one map [E, H, h / H, bottleneck], and an intercept.
        joined = _keeping_one(values["join"]) @ values["narrow"]
        narrow, intercept = joined[:, :-1].unflatten(1, (self.heads, -1)), joined[:, -1:]
        image = (of_image[..., :-1] @ seen_t + of_image[..., -1:] * seen_f) @ narrow
        by_texts, by_image = among.softmax(-1) @ seen_t @ narrow, seen_f @ narrow  # [E, H, N or A, bottleneck]
        text = (intercept + by_texts.sum(1)).unsqueeze(1) + torch.einsum("ehna,ehak->eank", share, by_image) \
            - torch.einsum("ehna,ehnk->eank", share, by_texts)

        up = values["up"]
        of_points = with_one(gelu(intercept + image.sum(1))) @ up
        if self.variant == "official":
            of_points = l2_normalise(of_points)
        moved = l2_normalise(self.ratio * of_points + (1 - self.ratio) * points)
        added = with_one(gelu(text))  # [E, A, N, bottleneck + 1], times `up` what is added to the texts
        columns = up.transpose(1, 2)
        with_image = (added * (moved @ columns).unsqueeze(2)).sum(-1)  # inner products [E, A, N] of it
        with_text = (added * (texts @ columns).unsqueeze(1)).sum(-1)
        square = (added @ (up @ columns).unsqueeze(1) * added).sum(-1)
        ratio, rest = self.ratio * (square.rsqrt() if self.variant == "official" else 1), 1 - self.ratio
        length = ratio**2 * square + 2 * ratio * rest * with_text + rest**2
        inner = ratio * with_image + rest * (moved @ texts.transpose(1, 2))
        return inner / length.clamp_min(torch.finfo(length.dtype).tiny).sqrt()

    def _projected(self, points: Tensor, values: Tensors) -> list[Tensor]:
        """What the heads ask with, are found by and give, of points [E, A, D]: three times [E, H, A, h / H]."""
        few = with_one(with_one(with_one(points) @ values["in"]) @ values["down"])
        looks, keys, seen = ((few @ values[name]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for name in ("query", "key", "value"))
        return [looks / looks.shape[-1] ** 0.5, keys, seen]


def _keeping_one(layer: Tensor) -> Tensor:
    """A layer [E, inputs + 1, outputs] as a map of points that end in 1 to points that end in 1."""
    last = torch.zeros_like(layer[..., :1])
    last[:, -1] = 1
    return torch.cat([layer, last], -1)
