"""Mean ranks of several methods over episodes or protocols."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fewshot.core.errors import FewshotError
from fewshot.statistics.intervals import check_confidence


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of K methods over B blocks (1 is best, ties share their mean rank).

    ranks                [K]
    critical_difference  mean ranks that differ by more are told apart (Nemenyi's test, all pairs at once)
    p_value              Friedman's test of "all methods rank alike"
    blocks               B
    concordance          Kendall's W, how far the blocks agree: 1 if all rank alike, 0 if the mean ranks are equal
    """

    ranks: tuple[float, ...]
    critical_difference: float
    p_value: float
    blocks: int
    confidence: float
    concordance: float


def rank(values: ArrayLike, confidence: float = 0.95) -> Ranking:
    """Rank K methods within each of B blocks, values [K, B], higher is better (Demsar 2006, section 3.2.2).

    The critical difference is q sqrt(K (K + 1) / (6 B)), with q the studentised range quantile for K groups and infinite
    degrees of freedom over sqrt(2). It takes blocks as independent: episodes of one run, or data sets. Ties between
    methods make it conservative. Raises FewshotError for fewer than 2 methods or blocks.
    """
    from scipy import stats  # takes most of a second

    values = np.asarray(values, dtype=np.float64)
    check_confidence(confidence)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise FewshotError(f"values have shape {values.shape}; ranks need finite [K, B] of at least 2 methods and 2 "
                           "episodes or protocols that all methods share")
    methods, blocks = values.shape
    ranks = stats.rankdata(-values, axis=0)
    means = ranks.mean(1)
    # Friedman's chi-square with the variance of the ranks as they are, which is its correction for ties.
    variance = ranks.var(axis=0, ddof=1).sum()
    statistic = blocks**2 * ((means - (methods + 1) / 2) ** 2).sum() / variance if variance > 0 else 0.0
    quantile = stats.studentized_range.ppf(confidence, methods, np.inf) / np.sqrt(2)
    difference = quantile * np.sqrt(methods * (methods + 1) / (6 * blocks))
    p_value = float(stats.chi2.sf(statistic, methods - 1))
    return Ranking(tuple(means.tolist()), float(difference), p_value, blocks, confidence,
                   float(statistic / (blocks * (methods - 1))))
