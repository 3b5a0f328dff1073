"""Means, intervals and paired differences over episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fewshot.errors import FewshotError


@dataclass(frozen=True)
class Interval:
    """mean +- half_width from n values; `covers` says what would have to be redrawn for the mean to move like this."""

    mean: float
    half_width: float
    n: int
    confidence: float = 0.95
    covers: str = "episode sampling"

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def percent(self) -> str:
        """`81.23 ± 0.19`, both times 100."""
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f}"


def mean_interval(values, confidence: float = 0.95, covers: str = "episode sampling") -> Interval:
    """Student-t interval of the mean of independent values [n] (ddof = 1); n = 1 gives an infinite half width."""
    values = _as_values(values)
    if not 0 < confidence < 1:
        raise FewshotError(f"confidence={confidence}; it must lie between 0 and 1, for example 0.95")
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), float("inf"), 1, confidence, covers)
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(half), n, confidence, covers)


@dataclass(frozen=True)
class Comparison:
    """Paired difference a - b on the same episodes.

    difference    mean difference and its interval
    better        share of episodes on which a is strictly better; ties counts the equal ones
    p_value       two-sided paired t-test of "no difference"
    """

    difference: Interval
    better: float
    ties: float
    p_value: float

    @property
    def significant(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0


def paired_difference(a, b, confidence: float = 0.95) -> Comparison:
    """Compare per-episode values of two methods on the same episodes, [n] each."""
    a, b = _as_values(a), _as_values(b)
    if a.shape != b.shape:
        raise FewshotError(f"{len(a)} and {len(b)} episodes cannot be paired; evaluate both on the same episodes")
    gap = a - b
    interval = mean_interval(gap, confidence, covers="episode sampling, paired")
    # A gap that is the same everywhere has no spread to test against; without any gap t is 0/0: no evidence.
    varies = len(gap) > 1 and gap.std() > 1e-12
    p_value = float(stats.ttest_1samp(gap, 0.0).pvalue) if varies else float(not gap.any())
    return Comparison(interval, float((gap > 0).mean()), float((gap == 0).mean()), p_value)


def _as_values(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise FewshotError(f"values have shape {values.shape}; expected [n] with n of at least 1")
    if not np.isfinite(values).all():
        raise FewshotError(f"value {int(np.flatnonzero(~np.isfinite(values))[0])} is not finite")
    return values
