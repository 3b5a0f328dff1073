"""Paired differences on the same episodes, and the correction for several of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fewshot.core.errors import FewshotError
from fewshot.core.html import html_table
from fewshot.statistics.intervals import Interval, as_values, mean_interval


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

    @property
    def probability(self) -> float:
        """That a beats b on an episode, ties counted half."""
        return self.better + self.ties / 2

    def _repr_html_(self) -> str:
        found = self.difference
        verdict = "distinguishable" if self.significant else "not distinguishable"
        return html_table("a against b on the same episodes", [
            ("difference a - b", f"{found.percent()} percentage points, {found.confidence:.0%} interval: {verdict}"),
            ("p-value", f"{_p_text(self.p_value)}, two-sided paired t-test"),
            ("episodes", f"{found.n:,}: a better on {self.better:.1%}, equal on {self.ties:.1%}")])


def _p_text(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "below 0.0001"


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Comparison:
    """Compare per-episode values of two methods on the same episodes, [n] each."""
    a, b = as_values(a), as_values(b)
    if a.shape != b.shape:
        raise FewshotError(f"{len(a)} and {len(b)} episodes cannot be paired; evaluate both on the same episodes")
    gap = a - b
    interval = mean_interval(gap, confidence, covers="episode sampling, paired")
    # A gap that is the same everywhere has no spread to test against; one episode, or no gap, is no evidence.
    varies = len(gap) > 1 and gap.std() > 1e-12
    if varies:
        t = gap.mean() / (gap.std(ddof=1) / np.sqrt(len(gap)))
        p_value = float(2 * special.stdtr(len(gap) - 1, -abs(t)))
    else:
        p_value = float(len(gap) == 1 or not gap.any())
    return Comparison(interval, float((gap > 0).mean()), float((gap == 0).mean()), p_value)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values [m] that keep the chance of any false finding among m tests below the level, whatever their
    dependence: the i-th smallest times m - i + 1, made monotone and cut at 1 (Holm 1979)."""
    p = as_values(p_values)
    if p.min() < 0 or p.max() > 1:
        raise FewshotError(f"p-values span {p.min()} to {p.max()}; they lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
