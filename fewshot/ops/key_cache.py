"""Votes of support items for their classes by their nearness to a query: what the cache models on CLIP features share."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.ops.prototypes import class_sums
from fewshot.ops.text import text_logits


@dataclass(frozen=True, eq=False)
class KeyCache:
    """Distances of the queries from the support, and what the texts say of the queries.

    text        [E, N, Q] logits by the texts alone
    distances   [E, S, Q] 1 - cosine, of trained keys 1 - their inner product with a unit vector
    labels      [E, S] of the support;  ways: number of classes
    """

    text: Tensor
    distances: Tensor
    labels: Tensor
    ways: int
    _nearness: dict[float, Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, episodes: Episodes, keys: Tensor, points: Tensor, text_scale: float) -> KeyCache:
        """With keys [E, S, P] for the support and unit vectors `points` [E, Q, P] for the queries."""
        text = text_logits(episodes, text_scale).transpose(1, 2).contiguous()
        distances = (-keys @ points.transpose(1, 2)).add_(1)
        return cls(text, distances, episodes.support_labels, episodes.ways)

    def votes(self, beta: float, weights: Tensor | None = None) -> Tensor:
        """[E, N, Q] sum over the support of each class of weights_s exp(-beta distance), weights [E, S]."""
        nearness = self._nearness.get(beta)
        if nearness is None:
            nearness = (self.distances * -beta).exp_()
            self._nearness.clear()  # the last one is kept: weights may change for one beta
            self._nearness[beta] = nearness
        if weights is not None:
            nearness = nearness * weights.unsqueeze(-1)
        return class_sums(nearness, self.labels, self.ways)[0]
