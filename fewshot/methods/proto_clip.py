"""Proto-CLIP: image prototypes and texts as two nearest-prototype classifiers, whose probabilities are mixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_number, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod
from fewshot.methods.contract import METHODS
from fewshot.methods.tip_adapter import reused_after_training
from fewshot.ops.adam import Adam, cosine_rate
from fewshot.ops.distances import before_unit, l2_normalise, squared_euclidean
from fewshot.ops.heads import class_means
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import unit_texts

_EPSILON, _DECAY = 1e-4, 0.05  # of AdamW in the official program
_TEMPERATURE = 0.1  # of its alignment losses

Tensors = dict[str, Tensor]


@METHODS.register("proto_clip")
@dataclass(frozen=True)
class ProtoCLIP(GridMethod):
    """Without training, or with trained memories of images and texts (Proto-CLIP-F). Logits are log p,

        p = alpha softmax_n(-beta |q - c_n|^2) + (1 - alpha) softmax_n(-beta text_scale |q - w_n|^2)

    with queries, texts w_n and class means c_n of the support of unit length. alpha=0 ranks the classes as `zero_shot`.

    alpha, beta   the defaults are those of the official configuration for ImageNet; the program searches alpha 0, 0.1, ...,
                  1 and beta 0.1, ..., 0.9, 1, 2, ..., 20
    text_scale    0 leaves the texts out: their probabilities are then equal and alignment is not trained
    trained       train a copy of the support, whose class means are c_n, and the texts; by the mean of -log p of the support
                  plus the InfoNCE losses of c_n with w_n and of w_n with c_n, both at temperature 0.1
    train_text    False leaves the texts as they are, which some official configurations do
    steps         of AdamW, 2,000 passes in the program. 0 is the form without training
    train_alpha, train_beta   the values while training, None for alpha and beta
    variant       "official": the learning rate falls as slowly as in the program, whose cosine is S times as long as its
                  training

    Deviations of the trained form: the program adds an adapter of the queries, which changes the answer before any step and
    is chosen for each data set; here there is none. A step takes all support items, where the program draws between a fifth
    and two fifths of the classes, some of their items, and leaves one class out of every pass. The last step is taken, not
    the best on validation images. In both, an item is part of its class mean while it is classified. Trained logits carry
    no gradient.
    """

    paper = "Jaykumar P et al. 2023 (Proto-CLIP), arXiv:2307.03073; IRVLUTD/Proto-CLIP"
    needs_text = True
    searched_grid = {"alpha": tuple(step / 10 for step in range(11)),
                     "beta": (*(step / 10 for step in range(1, 10)), *map(float, range(1, 21)))}

    alpha: float = 0.5
    beta: float = 12.0
    text_scale: float = 1.0
    trained: bool = False
    train_text: bool = True
    steps: int = 2000
    learning_rate: float = 1e-4
    train_alpha: float | None = None
    train_beta: float | None = None
    variant: str = "sane"

    def __post_init__(self) -> None:
        for name in ("alpha", "train_alpha"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, 0, 1)
        check_positive(beta=self.beta, train_beta=self.train_beta, learning_rate=self.learning_rate)
        check_at_least(0, text_scale=self.text_scale, steps=self.steps)
        check_choice(("sane", "official"), variant=self.variant)

    @property
    def reused(self) -> tuple[str, ...]:
        return reused_after_training(self.trained, ("alpha", "beta"), self.train_alpha, self.train_beta)

    def shared(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Squared distances of the queries from image prototypes and from texts, [E, N, Q] each."""
        memories = {"images": l2_normalise(episodes.support), "texts": unit_texts(episodes)}
        if self.trained:
            memories = self._trained(episodes, memories)
        images, texts = _prototypes(memories, episodes)
        return _distances(images, texts, l2_normalise(episodes.query))

    def parts(self, shared: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        return (_mixed(*self._log_probabilities(*shared, self.beta), self.alpha),)

    def _log_probabilities(self, by_image: Tensor, by_text: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities by either, [E, N, Q] each, from squared distances."""
        return (-beta * by_image).log_softmax(1), (-beta * self.text_scale * by_text).log_softmax(1)

    @torch.no_grad()
    def _trained(self, episodes: Episodes, start: Tensors) -> Tensors:
        """Memories of images [E, S, D] and texts [E, N, D]."""
        names = ["images", "texts"] if self.train_text else ["images"]
        memories = {name: value.clone() for name, value in start.items()}
        adam = Adam([memories[name] for name in names], self.learning_rate, epsilon=_EPSILON, weight_decay=_DECAY)
        length = self.steps * (episodes.support.shape[1] if self.variant == "official" else 1)
        for step in range(self.steps):
            adam.learning_rate = cosine_rate(self.learning_rate, step, length)
            found = self._gradient(episodes, start["images"], memories)
            adam.step([found[name] for name in names])
        return memories

    def _gradient(self, episodes: Episodes, support: Tensor, memories: Tensors) -> Tensors:
        """Of the loss, for unit vectors `support` [E, S, D]. What lies along a prototype counts for nothing, as its length
        is 1: of the derivative 2 (q - c) of a squared distance 2 q is left."""
        alpha = self.alpha if self.train_alpha is None else self.train_alpha
        beta = self.beta if self.train_beta is None else self.train_beta
        labels, own = episodes.support_labels, episodes.support_labels.unsqueeze(1)
        wanted = one_hot(labels, episodes.ways, support.dtype).transpose(1, 2)  # [E, N, S]
        images, texts = _prototypes(memories, episodes)
        image, text = self._log_probabilities(*_distances(images, texts, support), beta)
        share = alpha * (image - _mixed(image, text, alpha)).gather(1, own).exp() if alpha else torch.zeros_like(own)
        at_images = 2 * beta * (share * (image.exp() - wanted)) @ support / support.shape[1]
        at_texts = 2 * beta * self.text_scale * ((1 - share) * (text.exp() - wanted)) @ support / support.shape[1]
        if self.text_scale > 0:
            alike = images @ texts.transpose(1, 2) / _TEMPERATURE
            identity = torch.eye(episodes.ways, dtype=alike.dtype, device=alike.device)
            errors = (alike.softmax(1) + alike.softmax(2) - 2 * identity) / (_TEMPERATURE * episodes.ways)
            at_images, at_texts = at_images + errors @ texts, at_texts + errors.transpose(1, 2) @ images
        means = class_means(l2_normalise(memories["images"]), labels, episodes.ways)
        at_means = before_unit(at_images, means) / wanted.sum(-1, keepdim=True)
        at_items = at_means.take_along_dim(labels.unsqueeze(-1), 1)
        return {"images": before_unit(at_items, memories["images"]), "texts": before_unit(at_texts, memories["texts"])}


def _mixed(image: Tensor, text: Tensor, alpha: float) -> Tensor:
    """log(alpha exp(image) + (1 - alpha) exp(text))."""
    if alpha in (0, 1):  # the logarithm of the other weight is not finite
        return image if alpha else text
    return torch.logaddexp(image + math.log(alpha), text + math.log1p(-alpha))


def _prototypes(memories: Tensors, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Unit vectors [E, N, D] of images and of texts."""
    images = class_means(l2_normalise(memories["images"]), episodes.support_labels, episodes.ways)
    return l2_normalise(images), l2_normalise(memories["texts"])


def _distances(images: Tensor, texts: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [E, N, Q] of points [E, Q, D] from either."""
    return squared_euclidean(points, images).transpose(1, 2), squared_euclidean(points, texts).transpose(1, 2)
