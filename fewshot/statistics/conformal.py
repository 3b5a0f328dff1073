"""Split conformal prediction: the threshold below which a wanted share of new scores lies."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fewshot.core.errors import FewshotError
from fewshot.statistics.intervals import as_values


def conformal_rank(n: int, coverage: float) -> int:
    """Which of n sorted scores, from 1 on, is the threshold; n + 1 where none is large enough.

    Raises FewshotError for a `coverage` outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise FewshotError(f"coverage={coverage}; it must lie between 0 and 1, for example 0.9")
    return min(math.ceil((n + 1) * coverage - 1e-9), n + 1)  # 0.7 * 10 is a little above 7 in binary


def conformal_threshold(scores: ArrayLike, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of the scores [n], infinite where n is too small for that.

    A further score that is exchangeable with them is at most the threshold with a probability of at least `coverage`, and of
    at most coverage + 1 / (n + 1) where there are no ties (Vovk, Gammerman and Shafer 2005; Lei et al. 2018, theorem 2.2).
    A score equal to the threshold counts as below it, so that ties only ever add coverage.

    Raises FewshotError for scores that are not finite, and for a `coverage` outside (0, 1).
    """
    values = as_values(scores)
    place = conformal_rank(len(values), coverage)
    return math.inf if place > len(values) else float(np.partition(values, place - 1)[place - 1])
