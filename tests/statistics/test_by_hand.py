"""Numbers worked out by hand, by plain loops or in print, and the limits at which values are refused."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.statistics import (
    Interval,
    bootstrap_interval,
    class_interval,
    episodes_needed,
    holm,
    mean_interval,
    paired_difference,
    plan_episodes,
    rank,
    seed_spread,
    worst_share,
)

# -- intervals ------------------------------------------------------------------------------------------------------


def test_the_ends_of_an_interval():
    plain, skewed = Interval(0.5, 0.25, 4), Interval(0.5, 0.25, 4, bounds=(0.375, 0.875))
    assert (plain.low, plain.high) == (0.25, 0.75)
    assert (skewed.low, skewed.high) == (0.375, 0.875)
    assert (plain.confidence, plain.covers) == (0.95, "episode sampling")


def test_an_interval_of_two_values():
    """The t distribution with one degree of freedom is Cauchy's, whose quantiles are tangents."""
    found = mean_interval([0.25, 0.75], 0.5, "tosses")
    assert found == Interval(0.5, pytest.approx(math.tan(math.pi / 4) * 0.25), 2, 0.5, "tosses")
    assert mean_interval([0.3], 0.5, "tosses") == Interval(0.3, math.inf, 1, 0.5, "tosses")


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95])
def test_confidence_lies_between_0_and_1(confidence):
    for made in (lambda: mean_interval([0.1, 0.2], confidence), lambda: bootstrap_interval([0.1, 0.2], confidence),
                 lambda: class_interval([0.1], [[0, 1]], confidence), lambda: rank(np.eye(2), confidence),
                 lambda: episodes_needed(1, 1, 0.8, confidence)):
        with pytest.raises(FewshotError, match=f"confidence={confidence}; it must lie between 0 and 1"):
            made()


def test_values_that_are_refused_are_named():
    spoiled, good = [0.1, 0.2, math.inf, math.nan], [0.1, 0.2, 0.3, 0.4]
    for made in (lambda: mean_interval(spoiled), lambda: bootstrap_interval(spoiled), lambda: worst_share(spoiled),
                 lambda: seed_spread(spoiled), lambda: class_interval(spoiled, np.eye(4)), lambda: holm(spoiled),
                 lambda: paired_difference(spoiled, good), lambda: paired_difference(good, spoiled),
                 lambda: plan_episodes(spoiled, good, 1), lambda: plan_episodes(good, spoiled, 1)):
        with pytest.raises(FewshotError, match="value 2 is not finite"):
            made()
    for values, shape in (([], r"\(0,\)"), ([[0.1]], r"\(1, 1\)"), (0.5, r"\(\)")):
        with pytest.raises(FewshotError, match=f"values have shape {shape}"):
            mean_interval(values)


def loop_over_classes(values, classes, confidence):
    """(half width, degrees of freedom) by the formulas of `class_interval`, class by class."""
    pool, (episodes, ways), mean = np.unique(classes), classes.shape, values.mean()
    size, pseudo, noise = len(pool), [], 0.0
    factor = (size - 1) * ways / (size - ways)
    for label in pool:
        held = values[(classes == label).any(1)]
        pseudo.append(mean + factor * (held.mean() - mean))
        noise += factor**2 * held.var(ddof=1) * (1 / len(held) - 1 / episodes) / size
    between, within = np.var(pseudo, ddof=1) / size, values.var(ddof=1) / episodes
    variance = max(between - noise / size, 0) + within
    freedom = variance**2 / (between**2 / (size - 1) + within**2 / (episodes - 1))
    return stats.t.ppf(0.5 + confidence / 2, max(freedom, (size - 1) / 4)) * variance**0.5, freedom


@pytest.mark.parametrize(("effect", "rows"), [(0.3, 1 << 16), (0.3, 7), (0.1, 1 << 16), (0.0, 16)])
def test_the_class_interval_is_the_formula_of_its_docstring(monkeypatch, effect, rows):
    """Classes that differ much, little and not at all, in unequal numbers of episodes, taken in blocks of any size."""
    monkeypatch.setattr("fewshot.statistics.intervals._ROWS", rows)
    rng = np.random.default_rng(3)
    classes = np.stack([rng.choice(13, 3, replace=False, p=np.arange(1, 14) / 91) for _ in range(90)]) * 10 + 5
    values = (effect * classes / 130).mean(1) + 0.1 * rng.random(90)
    for confidence in (0.95, 0.5):
        expected, freedom = loop_over_classes(values, classes, confidence)
        found = class_interval(values, classes, confidence)
        assert found.half_width == pytest.approx(expected, rel=1e-12)
        assert found == Interval(pytest.approx(values.mean()), found.half_width, 90, confidence,
                                 "episode sampling and the choice of the novel classes (13 classes)")
    assert (freedom < 3) == (effect == 0.0), "a quarter of C - 1 degrees of freedom are the least"


def test_the_least_that_an_interval_over_classes_needs():
    """N + 2 classes, each in two episodes and none in all."""
    pairs = np.array(list(combinations(range(4), 2)))
    accuracy = np.linspace(0, 1, 6)
    assert class_interval(accuracy, pairs).n == 6
    with pytest.raises(FewshotError, match=r"3 classes in 2-way episodes; .* at least 4"):
        class_interval(accuracy[:3], pairs[[0, 1, 3]])
    with pytest.raises(FewshotError, match="a class is in 1 and one in 3 of 5 episodes"):
        class_interval(accuracy[:5], np.array([[0, 1], [0, 1], [2, 3], [2, 3], [4, 3]]))
    twice = np.array([[0, 1], [0, 1], [2, 3], [2, 3]])
    assert class_interval(accuracy[:4], twice).half_width == pytest.approx(
        loop_over_classes(accuracy[:4], twice, 0.95)[0])
    assert class_interval(np.full(6, 0.5), pairs) == Interval(0.5, 0.0, 6, 0.95, class_interval(accuracy, pairs).covers)
    for classes, shape in ((pairs[:5], r"\(5, 2\)"), (pairs[:, 0], r"\(6,\)")):
        with pytest.raises(FewshotError, match=rf"classes have shape {shape}; expected \[E, N\] with E=6"):
            class_interval(accuracy, classes)


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_the_bootstrap_is_that_of_scipy(method, name):
    values = np.random.default_rng(0).exponential(size=25)
    for confidence, resamples, seed in ((0.9, 400, 5), (0.95, 9999, 0)):
        expected = stats.bootstrap((values,), np.std, n_resamples=resamples, confidence_level=confidence, method=name,
                                   random_state=np.random.default_rng(seed)).confidence_interval
        given = {} if seed == 0 else {"confidence": confidence, "resamples": resamples, "seed": seed}
        found = bootstrap_interval(values, statistic=np.std, method=method, covers="tosses", **given)
        assert found == Interval(values.std(), pytest.approx((expected.high - expected.low) / 2), 25, confidence,
                                 "tosses", (expected.low, expected.high))
    assert bootstrap_interval(values, resamples=50) == bootstrap_interval(values, resamples=50, statistic=np.mean,
                                                                          method="bca")


def test_the_bootstrap_of_values_that_say_little(monkeypatch):
    assert bootstrap_interval([0.3], 0.9) == Interval(0.3, math.inf, 1, 0.9)
    assert bootstrap_interval([0.5, 0.5], 0.9) == Interval(0.5, 0.0, 2, 0.9, bounds=(0.5, 0.5))
    monkeypatch.setattr("fewshot.statistics.intervals._MOST_BCA", 3)
    assert bootstrap_interval([0.1, 0.2, 0.4], resamples=99).n == 3
    with pytest.raises(FewshotError, match="4 values; BCa .* for at most 3"):
        bootstrap_interval([0.1, 0.2, 0.3, 0.4], resamples=99)
    assert bootstrap_interval([0.1, 0.2, 0.3, 0.4], resamples=99, method="percentile").n == 4


def test_the_worst_quarter_of_ten_values():
    """2.5 values: the two lowest and half of the third."""
    values = np.arange(1, 11)[::-1] / 10
    found = worst_share(values, 0.25, 0.9)
    assert found.mean == pytest.approx((0.1 + 0.2 + 0.3 / 2) / 2.5)
    spread = [0.3 + min(value - 0.3, 0) / 0.25 for value in values]
    assert found.half_width == pytest.approx(stats.t.ppf(0.95, 9) * stats.sem(spread)) and found.confidence == 0.9
    assert worst_share([0.4, 0.8], 1).mean == pytest.approx(0.6)
    assert worst_share(np.arange(20)).mean == pytest.approx(0.5), "a tenth is what it takes if nothing else is said"
    for share in (0, -0.1, 1.01):
        with pytest.raises(FewshotError, match=f"share={share}; it must lie above 0"):
            worst_share(values, share)


def test_a_spread_over_two_seeds():
    found = seed_spread([0.75, 0.25], 0.5)
    assert (found.spread, found.lowest, found.highest) == (pytest.approx(0.5**0.5 / 2), 0.25, 0.75)
    assert found.interval == Interval(0.5, pytest.approx(0.25), 2, 0.5,
                                      "the training seed, each with its own error of episode sampling")


# -- comparisons ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "significant"), [
    ([0.5, 0.6, 0.7], [0.4, 0.51, 0.59], True), ([0.4, 0.51, 0.59], [0.5, 0.6, 0.7], True),
    ([0.5, 0.6, 0.7], [0.4, 0.7, 0.6], False)])
def test_a_difference_is_significant_where_its_interval_leaves_out_zero(a, b, significant):
    found, gap = paired_difference(a, b), np.subtract(a, b)
    assert found.significant is significant and (found.p_value < 0.05) is significant
    low, high = stats.t.interval(0.95, 2, gap.mean(), stats.sem(gap))
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    assert found.difference.covers == "episode sampling, paired" and found.difference.n == 3
    assert found.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert (found.better, found.ties) == (sum(gap > 0) / 3, 0)


def test_differences_without_a_spread():
    """The same on several episodes is as sure as can be, on one episode it says nothing."""
    assert paired_difference([0.5, 0.75], [0.25, 0.5]).p_value == 0
    equal = paired_difference([0.5, 0.75], [0.5, 0.75])
    assert equal.p_value == 1 and not equal.significant, "an interval that ends at zero holds it"
    alone = paired_difference([0.75], [0.5])
    assert alone.p_value == 1 and not alone.significant and alone.better == 1
    two = paired_difference([0.5, 0.75], [0.25, 0.25], 0.5)  # t = 3 with one degree of freedom
    assert two.difference.half_width == pytest.approx(0.125) and two.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_p_values_lie_between_0_and_1():
    np.testing.assert_array_equal(holm([0, 1]), [0, 1])
    for values, span in (([-0.1, 0.5], "-0.1 to 0.5"), ([0.5, 1.2], "0.5 to 1.2")):
        with pytest.raises(FewshotError, match=f"p-values span {span}"):
            holm(values)


# -- ranks ----------------------------------------------------------------------------------------------------------


def test_ranks_with_a_tie_by_hand():
    """Ranks 1 2 3, 2 1 3 and 1.5 1.5 3: their means are 1.5 1.5 3, 0.5 0.5 1 from 2, and their variances 1, 1 and 3/4.
    Friedman's statistic is 3^2 (0.25 + 0.25 + 1) / 2.75 = 54/11, of which 6 would be full agreement; the tail of a
    chi-square with two degrees of freedom is exp(-x / 2)."""
    found = rank([[0.9, 0.8, 0.5], [0.8, 0.9, 0.5], [0.1, 0.2, 0.3]])
    assert found.ranks == (1.5, 1.5, 3) and found.blocks == 3 and found.confidence == 0.95
    assert found.concordance == pytest.approx(9 / 11) and found.p_value == pytest.approx(math.exp(-27 / 11))
    assert found.critical_difference == pytest.approx(2.343 * (3 * 4 / (6 * 3)) ** 0.5, abs=1e-3), "Demsar 2006, table 5a"
    wider = rank(np.random.default_rng(0).random((4, 14)), 0.9)
    assert wider.critical_difference == pytest.approx(2.291 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3)
    assert wider.confidence == 0.9
    two = rank([[0.9, 0.8], [0.1, 0.2]])  # 2^2 (0.25 + 0.25) / (0.5 + 0.5) = 2, with one degree of freedom
    assert (two.ranks, two.concordance) == ((1, 2), 1) and two.p_value == pytest.approx(math.erfc(1))
    equal = rank([[0.5, 0.5], [0.5, 0.5]])
    assert (equal.ranks, equal.p_value, equal.concordance) == ((1.5, 1.5), 1, 0)


@pytest.mark.parametrize("values", [[[0.1, 0.2]], [[0.1], [0.2]], [0.1, 0.2], np.ones((2, 2, 2)),
                                    [[0.1, 0.2], [0.3, np.nan]]],
                         ids=["one method", "one block", "one axis", "three axes", "nan"])
def test_ranks_need_two_methods_on_two_blocks(values):
    with pytest.raises(FewshotError, match=rf"values have shape \({', '.join(map(str, np.shape(values)))}.*finite \[K, B\]"):
        rank(values)


# -- power ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "paired", "groups"), [(0.2, 199, 394), (0.5, 34, 64), (0.8, 15, 26)])
def test_numbers_that_are_in_print(effect, paired, groups):
    """Of Cohen's small, medium and large effects (1988, table 2.4.1; G*Power 3 for one group of differences)."""
    assert episodes_needed(effect, 1) == paired
    assert episodes_needed(1e19, effect) == episodes_needed(1e300, 1e-3, groups=2) == 2, "what a spread needs"
    assert episodes_needed(3 * effect, 3 * 2**0.5, groups=2) == groups


def test_numbers_of_episodes_at_other_levels():
    """The least number that has the power, counted upwards with the tails of the noncentral t."""
    def power(n, confidence, groups):
        limit, shift = stats.t.ppf(0.5 + confidence / 2, groups * (n - 1)), 0.3 * n**0.5
        tails = stats.nct(groups * (n - 1), shift)
        return tails.sf(limit) + tails.cdf(-limit)

    for level, confidence, groups in ((0.9, 0.99, 1), (0.5, 0.8, 2), (0.06, 0.95, 1), (0.3, 0.75, 1)):
        counted = next(n for n in range(2, 10**4) if power(n, confidence, groups) >= level)
        assert episodes_needed(0.3, 1, level, confidence, groups) == counted, (level, confidence, groups)
    assert episodes_needed(100, 1) == episodes_needed(100, 1, groups=2) == 2, "one has no spread"
    # Power 0.851 with two, by simulation; SciPy's other tail, which is nothing here, is NaN.
    assert episodes_needed(13, 1) == 2 and episodes_needed(11, 1) == 3


def test_impossible_plans_are_refused():
    for power in (0, 1, -0.5):
        with pytest.raises(FewshotError, match=f"power={power}; it must lie between 0 and 1"):
            episodes_needed(1, 1, power)
    for difference, deviation in ((0, 1), (-1, 1), (1, 0), (1, -1), (float("nan"), 1)):
        with pytest.raises(FewshotError, match=f"difference={difference}, deviation={deviation}; give positive numbers"):
            episodes_needed(difference, deviation)
    assert episodes_needed(4e-6, 1) == pytest.approx((1.959964 + 0.841621) ** 2 / 16e-12, rel=1e-5)
    assert episodes_needed(4e-3, 1e3) == episodes_needed(4e-6, 1)
    for scale in (1, 1e3):
        with pytest.raises(FewshotError, match=f"difference={3e-6 * scale} needs more than 1e.12 episodes"):
            episodes_needed(3e-6 * scale, scale)


def test_a_plan_from_ten_episodes():
    a, b = np.array([0, 1] * 5), np.array([0, 0, 1, 1, 0] * 2)
    plan = plan_episodes(a, b, 0.5, 0.9, 0.9)
    apart = (a.var(ddof=1) + b.var(ddof=1)) ** 0.5
    assert plan.paired == episodes_needed(0.5, (a - b).std(ddof=1), 0.9, 0.9)
    assert plan.unpaired == episodes_needed(0.5, apart, 0.9, 0.9, groups=2)
    assert plan.factor == plan.unpaired / plan.paired and plan.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert (plan.difference, plan.power, plan.confidence, plan.pilot) == (0.5, 0.9, 0.9, 10)
    standard = plan_episodes(a, b, 0.5)
    assert (standard.power, standard.confidence, standard.paired) == (0.8, 0.95, episodes_needed(0.5, (a - b).std(ddof=1)))
    for first, second in ((a, np.ones(10)), (np.ones(10), b)):
        assert plan_episodes(first, second, 0.5).correlation == 0, "of one that is the same everywhere"
    for first, second in ((a[:9], b[:9]), (a, b[:9])):
        with pytest.raises(FewshotError, match=f"a pilot of {len(first)} and {len(second)} episodes"):
            plan_episodes(first, second, 0.5)


def test_findings_cannot_be_altered():
    values = np.arange(10.0)
    for found in (mean_interval(values), seed_spread(values), paired_difference(values, values), rank(np.eye(2)),
                  plan_episodes(values, values**2, 1)):
        field = dataclasses.fields(found)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, field, None)
