"""Intervals cover what they say, and comparisons are paired."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fewshot.errors import FewshotError
from fewshot.statistics import mean_interval, paired_difference


def test_against_scipy():
    values = np.random.default_rng(0).random(37)
    interval = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 36, values.mean(), stats.sem(values))
    assert interval.low == pytest.approx(low) and interval.high == pytest.approx(high) and interval.n == 37


@pytest.mark.parametrize("episodes", [10, 100, 600])
def test_coverage(episodes):
    """95 % intervals cover the true mean in 94 to 96 % of 2,000 repetitions of simulated episode accuracies:
    the difficulty of an episode varies (Beta), its 75 queries are then right or wrong (binomial)."""
    rng = np.random.default_rng(episodes)
    difficulty = rng.beta(8, 4, (2000, episodes))
    accuracy = rng.binomial(75, difficulty) / 75
    covered = [i.low <= 8 / 12 <= i.high for i in map(mean_interval, accuracy)]
    assert 0.94 <= np.mean(covered) <= 0.96


def test_coverage_of_the_paired_difference():
    """Methods that share their episodes' difficulty: the paired interval covers, and is far narrower than an unpaired."""
    rng = np.random.default_rng(7)
    difficulty = rng.beta(8, 4, (2000, 100))
    a = rng.binomial(75, difficulty) / 75
    b = rng.binomial(75, np.clip(difficulty - 0.02, 0, 1)) / 75
    true = 0.02 - (0.02 - rng.beta(8, 4, 10**6)).clip(0).mean()
    found = [paired_difference(x, y).difference for x, y in zip(a, b, strict=True)]
    assert 0.94 <= np.mean([d.low <= true <= d.high for d in found]) <= 0.96
    assert found[0].half_width < mean_interval(a[0]).half_width


def test_percent_is_what_tables_print():
    assert mean_interval([0.5, 0.7, 0.6, 0.6]).percent() == "60.00 ± 12.99"


def test_one_value_has_no_finite_interval():
    assert mean_interval([0.3]).half_width == float("inf")


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, float("nan")]])
def test_wrong_values_raise(values):
    with pytest.raises(FewshotError):
        mean_interval(values)


def test_wrong_confidence_raises():
    with pytest.raises(FewshotError, match="95"):
        mean_interval([0.1, 0.2], confidence=95)


def test_comparison_counts_wins_and_ties():
    result = paired_difference([0.5, 0.6, 0.7, 0.7], [0.4, 0.6, 0.6, 0.8])
    assert result.better == 0.5 and result.ties == 0.25 and not result.significant
    assert result.p_value == pytest.approx(stats.ttest_1samp([0.1, 0, 0.1, -0.1], 0).pvalue)
    same = paired_difference([0.5, 0.6], [0.5, 0.6])
    assert same.p_value == 1 and same.difference.mean == 0 and same.ties == 1


def test_unpaired_values_are_refused():
    with pytest.raises(FewshotError, match="3 and 2 episodes"):
        paired_difference([1, 2, 3], [1, 2])
