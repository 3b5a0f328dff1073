"""PADDLE: unit-covariance Gaussian EM with a penalty on the number of classes among the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.mixtures import GaussianStatistics, centroids, gaussian_em
from fewshot.ops.prototypes import class_sums


@METHODS.register("paddle")
@dataclass(frozen=True, eq=False)
class Paddle(IterativeMethod):
    """Minimise sum u |z - w|^2 / 2 + sum y |s - w|^2 / 2 + sum u log u - lambda sum_k pi_k log pi_k over assignments u
    and centroids w, with pi the mean of u (eq. 6), in turns: u = softmax_k(-|z - w_k|^2 / 2 + lambda (log pi_k + 1) /
    Q), then w_k = (sum u z + sum y s) / (sum u + sum y). The logits are those of the last u.

    Meant for many classes of which few occur among the queries. With the range scaling, and few classes that all
    occur, it tends to gather the queries in some of them.

    iterations      100 in the paper; the first one uses no prior
    prior_weight    lambda / Q: 1 in the paper (then the prior is log pi_k and nothing is tuned), 0 is soft k-means
    scale_by_range  divide every feature by its range over the episode's queries (the paper's preprocessing); a feature
                    that is constant over the queries up to rounding is left as it is

    Refined prototypes are in the scaled space. The official scaler also shifts by the query minimum, to no effect.
    """

    paper = "Martin et al. 2022, arXiv:2210.14545; SegoleneMartin/PADDLE"

    iterations: int = 100
    prior_weight: float = 1.0
    scale_by_range: bool = True

    @property
    def assumes(self) -> tuple[str, ...]:
        return ("few of the classes among the queries",) if self.prior_weight > 0 else ()

    def __post_init__(self) -> None:
        check_at_least(1, iterations=self.iterations)
        if self.prior_weight < 0:
            raise FewshotError(f"prior_weight={self.prior_weight}; it must be 0 (soft k-means) or more")

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        moments = shifted_moments(episodes, self.scale_by_range)
        logits, visited = gaussian_em(GaussianStatistics.of(moments.query, moments.sums, moments.counts),
                                      [self.prior_weight] * self.iterations, [1] * self.iterations, history)
        path = [moments.centroids(u) for u in visited]
        return Refinement.of_fixed_steps(logits.transpose(1, 2), path[-1], self.iterations, path if history else None,
                                         episodes.with_features(lambda x: x * moments.scale) if history else None)


@dataclass(frozen=True, eq=False)
class Moments:
    """query [E, Q, D] and class sums [E, N, D] of the support, multiplied by `scale` (1 or [E, 1, D]) and shifted by
    `origin` [E, 1, D]; counts [E, N]."""

    query: Tensor
    sums: Tensor
    counts: Tensor
    origin: Tensor
    scale: Tensor | float = 1.0

    def centroids(self, u: Tensor) -> Tensor:
        """[E, N, D] for assignments u [E, N, Q], in unshifted coordinates."""
        return centroids(self.sums, self.counts, self.query, u) + self.origin


def shifted_moments(episodes: Episodes, scale_by_range: bool = False) -> Moments:
    """What Gaussian EM needs, relative to the mean query: distances ignore a shift, rounding does not."""
    query = episodes.query
    sums, counts = class_sums(episodes.support, episodes.support_labels, episodes.ways)
    means = sums / counts.unsqueeze(-1)
    origin = query.mean(1, keepdim=True)
    query, means = query - origin, means - origin
    scale: Tensor | float = 1.0
    if scale_by_range:
        low, high = episodes.query.aminmax(dim=1, keepdim=True)
        spread = high - low
        rounding = torch.finfo(spread.dtype).eps * torch.maximum(high.abs(), low.abs())
        scale = torch.where(spread > rounding, spread, 1).reciprocal()
        query, means, origin = query * scale, means * scale, origin * scale
    return Moments(query, means * counts.unsqueeze(-1), counts, origin, scale)
