"""The conformal threshold: by definition, with ties, and that it covers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.statistics import conformal_rank, conformal_threshold


@pytest.mark.parametrize("coverage", ["0.1", "0.5", "0.7", "0.8", "0.9", "0.95", "0.99"])
def test_the_rank_is_the_smallest_that_covers(coverage):
    """In exact fractions; 0.7 * 10 in binary would round up to the rank 8."""
    for n in range(1, 400):
        wanted = next(k for k in range(1, n + 2) if Fraction(k, n + 1) >= Fraction(coverage))
        assert conformal_rank(n, float(coverage)) == wanted


def test_the_threshold_is_that_score_and_infinite_where_there_are_too_few():
    scores = np.random.default_rng(0).permutation(19.0 - np.arange(19))  # 1 .. 19
    assert conformal_threshold(scores, 0.9) == 18 and conformal_threshold(scores, 0.95) == 19
    assert conformal_threshold(scores, 0.96) == np.inf and conformal_threshold(scores[:8], 0.9) == np.inf
    assert conformal_threshold([2.0, 2.0, 2.0, 5.0], 0.6) == 2  # equal to the threshold is below it


def test_it_covers_a_further_score_as_often_as_promised():
    """20,000 times 29 scores and one more: between 0.9 and 0.9 + 1 / 30, and exactly 27 / 30 here."""
    drawn = np.random.default_rng(0).normal(size=(20_000, 30))
    covered = np.mean([row[-1] <= conformal_threshold(row[:-1], 0.9) for row in drawn])
    assert abs(covered - 0.9) < 4 * np.sqrt(0.9 * 0.1 / len(drawn))
    rounded = drawn.round()  # ties only ever add
    assert np.mean([row[-1] <= conformal_threshold(row[:-1], 0.9) for row in rounded]) > 0.93


def test_wrong_input():
    for coverage in (0, 1, -0.5, float("nan")):
        with pytest.raises(FewshotError, match="coverage=.*between 0 and 1"):
            conformal_threshold([1.0], coverage)
    with pytest.raises(FewshotError, match="value 1 is not finite"):
        conformal_threshold([1.0, np.inf], 0.9)
