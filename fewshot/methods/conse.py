"""ConSE: the names of the classes that a network knows, weighted by their probabilities, stand for an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import cosine, l2_normalise
from fewshot.ops.text import known_class_probabilities, logit_scale, with_known_classes


@METHODS.register("conse")
@dataclass(frozen=True)
class ConSE(Method):
    """logits = logit_scale cos(sum_j p_j t_j, t_n), p = softmax(features / temperature); the support is not looked at.

    Features are the scores of K known classes, t_j their unit vectors, from `projection`, and t_n the texts of the episode,
    of classes that need not be known: `fewshot embed --text-space scores` writes such banks.

    temperature  of the probabilities
    top          only so many most probable known classes count; None for all

    The paper takes the top 1, 10 or 1,000 classes; with unit vectors t_n the order of the classes is that of `loki`.
    """

    paper = "Norouzi et al. 2014, arXiv:1312.5650"
    needs_text = True
    text_of_features = False

    temperature: float = 1.0
    top: int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, low_allowed=False)
        if self.top is not None:
            check_integer("top", self.top, 1)

    def __call__(self, episodes: Episodes) -> Tensor:
        texts, known = with_known_classes(episodes)
        found = known_class_probabilities(episodes.query, self.temperature, self.top) @ l2_normalise(known)
        return logit_scale(episodes) * cosine(found, texts)
