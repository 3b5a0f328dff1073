"""Cross-entropy of the queries: the usual loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.methods.bases.gradient_learner import mean_cross_entropy
from fewshot.training.losses.base import LOSSES, Loss


@LOSSES.register("cross_entropy")
@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Mean of -log softmax(logits)_y over all queries. Half-precision logits are widened first."""

    needs_features = False
    paper = "Snell et al. 2017, arXiv:1703.05175, algorithm 1"

    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        return mean_cross_entropy(logits, query_labels)
