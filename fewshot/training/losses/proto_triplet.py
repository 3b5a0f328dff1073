"""Proto-Triplet: a query is nearer to its prototype than to any other, by a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.training.losses.base import LOSSES, Loss

_EPSILON = 1e-6  # under the root, as in the authors' code: keeps its derivative finite


@LOSSES.register("proto_triplet")
@dataclass(frozen=True, eq=False)
class ProtoTriplet(Loss):
    """mean_q max(0, d(z_q, c_y) - min_{n != y} d(z_q, c_n) + margin), with c_n the mean of the support of class n and
    d = sqrt(|z - c|^2 + 1e-6).

    margin   0 or more; the authors' code uses 0.5, in units of the features

    It does not look at the logits.
    """

    paper = "Mendez-Ruiz et al. 2023, arXiv:2305.09062 (SuSana Distancia)"

    margin: float = 0.5

    def __post_init__(self) -> None:
        check_number("margin", self.margin, 0)

    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        distances = (squared_euclidean(features.query, prototypes(features)) + _EPSILON).sqrt()  # [E, Q, N]
        own = one_hot(query_labels, features.ways, distances.dtype).bool()
        nearest_other = distances.masked_fill(own, math.inf).amin(-1)  # [E, Q]
        return (distances.gather(-1, query_labels.unsqueeze(-1)).squeeze(-1) - nearest_other + self.margin).relu().mean()
