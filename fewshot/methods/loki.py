"""Loki: the class at the smallest expected distance from the classes that a network knows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.text import known_class_probabilities, with_known_classes


@METHODS.register("loki")
@dataclass(frozen=True)
class Loki(Method):
    """logits = -scale sum_j p_j d(n, j)^power: the Frechet mean of the known classes among those of the episode, for
    p = softmax(features / temperature); the support is not looked at.

    Features are the scores of K known classes, as for `conse`. d(n, j) is the Euclidean distance of the text of class n and
    the vector of known class j, neither made unit length: any metric that points can have, given as these points. Without
    `projection` known class j is the unit vector along channel j.

    power        2 is the paper's; with unit vectors the order of the classes is then that of `conse`
    temperature  of the probabilities
    scale        multiplies the logits; it changes probabilities, not predictions. The paper has predictions only

    Deviation: the official code takes any table of distances, also those of no points (path lengths in a tree).
    """

    paper = "Roberts et al. 2023, arXiv:2307.12226; SprocketLab/loki"
    needs_text = True
    text_of_features = False

    power: float = 2.0
    temperature: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("power", "temperature", "scale"):
            check_number(name, getattr(self, name), 0, low_allowed=False)

    def __call__(self, episodes: Episodes) -> Tensor:
        texts, known = with_known_classes(episodes)
        powers = squared_euclidean(texts, known.expand(len(texts), -1, -1)).pow(self.power / 2)  # [E, N, K]
        return -self.scale * known_class_probabilities(episodes.query, self.temperature) @ powers.transpose(1, 2)
