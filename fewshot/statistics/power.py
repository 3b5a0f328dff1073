"""How many episodes it takes to see a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fewshot.core.errors import FewshotError
from fewshot.statistics.intervals import as_values, check_confidence

_MOST = 10**12


@dataclass(frozen=True)
class Plan:
    """Episodes needed to see `difference` with probability `power` at level 1 - confidence, from a pilot.

    paired        episodes that both methods answer;  unpaired  episodes of each of two methods on different episodes
    factor        unpaired / paired: what pairing saves
    correlation   of the two methods' accuracies over the pilot's episodes;  pilot  its number of episodes
    """

    difference: float
    power: float
    confidence: float
    paired: int
    unpaired: int
    correlation: float
    pilot: int

    @property
    def factor(self) -> float:
        return self.unpaired / self.paired


def plan_episodes(a: ArrayLike, b: ArrayLike, difference: float, power: float = 0.8, confidence: float = 0.95) -> Plan:
    """Plan a comparison from per-episode accuracies of two methods on the same pilot episodes, [n] each.

    The paired test sees the spread of a - b, the unpaired one that of both: var(a) + var(b). Numbers are as good as the
    pilot's estimate of these: the standard deviation of n values is known to about 1 / sqrt(2 n) of itself.
    """
    a, b = as_values(a), as_values(b)
    if a.shape != b.shape or len(a) < 10:
        raise FewshotError(f"a pilot of {len(a)} and {len(b)} episodes; give two results on the same 10 episodes or more")
    gap, apart = (a - b).std(ddof=1), np.sqrt(a.var(ddof=1) + b.var(ddof=1))
    if gap == 0:
        raise FewshotError("the two results differ by the same on every episode of the pilot, so nothing can be said about "
                           "the spread of their difference; give two different methods or a larger pilot")
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    return Plan(difference, power, confidence, episodes_needed(difference, float(gap), power, confidence),
                episodes_needed(difference, float(apart), power, confidence, groups=2), correlation, len(a))


def episodes_needed(difference: float, deviation: float, power: float = 0.8, confidence: float = 0.95,
                    groups: int = 1) -> int:
    """Smallest n for which a two-sided t-test sees `difference` with probability `power`.

    deviation  of one paired difference (groups=1, n - 1 degrees of freedom), or sqrt(var_a + var_b) of two independent
               groups of n each (groups=2, 2 n - 2 degrees of freedom)

    The power is that of the noncentral t distribution with noncentrality difference sqrt(n) / deviation (Cohen 1988).
    """
    from scipy import stats  # takes most of a second

    check_confidence(confidence)
    if not 0 < power < 1:
        raise FewshotError(f"power={power}; it must lie between 0 and 1, for example 0.8")
    if not 0 < difference < math.inf or not 0 < deviation < math.inf:
        raise FewshotError(f"difference={difference}, deviation={deviation}; give positive numbers")
    if difference / deviation * math.sqrt(_MOST / 10) < 1:
        raise FewshotError(f"difference={difference} needs more than {_MOST:.0e} episodes; ask for a larger one")

    def enough(n: int) -> bool:
        freedom = groups * (n - 1)
        limit = stats.t.ppf(0.5 + confidence / 2, freedom)
        shift = min(difference * np.sqrt(n) / deviation, 1000 * limit)  # where the power is 1; SciPy has NaN far beyond
        wrong_side = np.nan_to_num(stats.nct.cdf(-limit, freedom, shift))  # nothing, and NaN, of a large shift
        return stats.nct.sf(limit, freedom, shift) + wrong_side >= power

    high = 2
    while not enough(high):
        high *= 2
    low = high // 2  # not enough, or 1, which has no spread
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
