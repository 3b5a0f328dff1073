"""Intervals cover what they say, and comparisons are paired."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.statistics import (
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


def test_against_scipy():
    values = np.random.default_rng(0).random(37)
    interval = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 36, values.mean(), stats.sem(values))
    assert interval.low == pytest.approx(low) and interval.high == pytest.approx(high) and interval.n == 37


@pytest.mark.parametrize("episodes", [10, 100, 600])
def test_coverage(episodes):
    """95 % intervals cover the true mean in 93.5 to 96.5 % of 4,000 repetitions of simulated episode accuracies:
    the difficulty of an episode varies (Beta), its 75 queries are then right or wrong (binomial)."""
    rng = np.random.default_rng(episodes)
    difficulty = rng.beta(8, 4, (4000, episodes))
    accuracy = rng.binomial(75, difficulty) / 75
    covered = [i.low <= 8 / 12 <= i.high for i in map(mean_interval, accuracy)]
    assert 0.935 <= np.mean(covered) <= 0.965


def class_pools(repetitions, classes, ways, episodes, effect, interaction=0.0, seed=0):
    """Per repetition a new pool of classes and its episodes: (accuracy [E], classes [E, N]), true mean 0.6. The accuracy
    of an episode is shifted by its classes' mean effect and by how its classes go together, pair by pair."""
    rng = np.random.default_rng(seed)
    for _ in range(repetitions):
        chosen = rng.random((episodes, classes)).argpartition(ways, 1)[:, :ways]
        shift, trait = effect * rng.standard_normal(classes)[chosen].mean(1), rng.standard_normal(classes)[chosen]
        pairs = (trait.sum(1) ** 2 - (trait**2).sum(1)) / (ways * (ways - 1))
        yield rng.binomial(75, (0.6 + shift + interaction * pairs).clip(0, 1)) / 75, chosen


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "effect", "interaction"), [
    (20, 0.1, 0.0), pytest.param(20, 0.04, 0.0, marks=pytest.mark.slow),
    pytest.param(64, 0.1, 0.03, marks=pytest.mark.slow)])
def test_coverage_when_classes_are_drawn_again(classes, effect, interaction):
    """The class-level interval covers in 93.5 to 96.5 % of 4,000 repetitions with new classes and new episodes, with
    small and large class effects and with interactions; the episode interval covers far less often."""
    covered = np.zeros(2)
    for accuracy, chosen in class_pools(4000, classes, 5, 400, effect, interaction, seed=classes):
        both = class_interval(accuracy, chosen), mean_interval(accuracy)
        covered += [i.low <= 0.6 <= i.high for i in both]
    covered /= 4000
    assert 0.935 <= covered[0] <= 0.965 and covered[1] < 0.6


def test_the_class_interval_is_the_jackknife_over_classes():
    """With the episodes of a pool complete, the variance between pools is that of leaving out one class."""
    chosen = np.array(list(combinations(range(9), 3)))
    accuracy = np.random.default_rng(0).random(9)[chosen].mean(1)
    left = np.array([accuracy[(chosen != c).all(1)].mean() for c in range(9)])
    jackknife = 8 / 9 * ((left - left.mean()) ** 2).sum()
    interval = class_interval(np.tile(accuracy, 10**4), np.tile(chosen, (10**4, 1)))
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 8) * np.sqrt(jackknife), rel=1e-3)
    assert "novel classes" in interval.covers and "9 classes" in interval.covers


def test_where_classes_do_not_matter_the_class_interval_stays_wide_enough():
    found = [class_interval(a, c).half_width for a, c in class_pools(200, 20, 5, 400, 0.0)]
    plain = [mean_interval(a).half_width for a, _ in class_pools(200, 20, 5, 400, 0.0)]
    assert 1 < np.mean(found) / np.mean(plain) < 2.5


@pytest.mark.parametrize(("classes", "message"), [
    (np.tile([0, 1, 2], (10, 1)), "at least 5"), (np.zeros(10), "expected"),
    (np.array([[0, n % 4 + 1] for n in range(10)]), "none of them all")])
def test_intervals_over_classes_that_cannot_be_made_are_refused(classes, message):
    with pytest.raises(FewshotError, match=message):
        class_interval(np.linspace(0, 1, 10), classes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_coverage_of_the_bootstrap(method):
    """As `test_coverage`, with 100 episodes a repetition."""
    rng = np.random.default_rng(5)
    accuracy = rng.binomial(75, rng.beta(8, 4, (4000, 100))) / 75
    found = [bootstrap_interval(values, method=method, resamples=999, seed=n) for n, values in enumerate(accuracy)]
    assert 0.935 <= np.mean([i.low <= 8 / 12 <= i.high for i in found]) <= 0.965


def test_bootstrap_is_seeded_and_agrees_with_student_t_on_many_values():
    values = np.random.default_rng(1).beta(8, 4, 2000)
    plain = mean_interval(values)
    for method in ("bca", "percentile"):
        found = bootstrap_interval(values, method=method, resamples=4000, seed=3)
        assert found == bootstrap_interval(values, method=method, resamples=4000, seed=3)
        assert found != bootstrap_interval(values, method=method, resamples=4000, seed=4)
        assert found.low == pytest.approx(plain.low, abs=0.08 * plain.half_width)
        assert found.high == pytest.approx(plain.high, abs=0.08 * plain.half_width)
    skewed = np.random.default_rng(1).exponential(size=30)
    found = bootstrap_interval(skewed)
    assert found.high - found.mean > found.mean - found.low, "BCa follows the skew"
    assert bootstrap_interval([0.5, 0.5, 0.5]).half_width == 0
    median = bootstrap_interval(values, statistic=np.median, method="percentile", resamples=500)
    assert median.low < np.median(values) == median.mean < median.high
    with pytest.raises(FewshotError, match="bca, percentile"):
        bootstrap_interval(values, method="bayes")


def test_worst_share_is_the_mean_of_the_worst_values_and_its_interval_covers():
    values = np.random.default_rng(2).random(1000)
    assert worst_share(values).mean == pytest.approx(np.sort(values)[:100].mean())
    assert worst_share(values, 1.0).mean == pytest.approx(values.mean())
    true = stats.norm.expect(lambda x: x, ub=stats.norm.ppf(0.1)) / 0.1
    drawn = np.random.default_rng(3).standard_normal((1000, 2000))
    assert 0.93 <= np.mean([i.low <= true <= i.high for i in map(worst_share, drawn)]) <= 0.97
    with pytest.raises(FewshotError, match="share=0"):
        worst_share(values, 0)


def test_seeds_are_kept_apart_from_episodes():
    found = seed_spread([0.61, 0.63, 0.60])
    assert found.interval.n == 3 and "training seed" in found.interval.covers
    assert found.spread == pytest.approx(np.std([0.61, 0.63, 0.60], ddof=1))
    assert (found.lowest, found.highest) == (0.60, 0.63)
    assert found.interval.half_width == pytest.approx(stats.t.ppf(0.975, 2) * found.spread / np.sqrt(3))
    with pytest.raises(FewshotError, match="at least 2"):
        seed_spread([0.6])


def test_size_of_the_paired_test_and_of_holm_under_the_null():
    """Three methods that differ in nothing but chance, on shared episodes: one paired test says otherwise in 5 % of
    4,000 repetitions, any of the three after Holm in at most 5 % (Holm is conservative)."""
    rng = np.random.default_rng(5)
    difficulty = rng.beta(8, 4, (4000, 60, 1))
    a, b, c = np.moveaxis(rng.binomial(75, np.broadcast_to(difficulty, (4000, 60, 3))) / 75, 2, 0)
    pairs = [stats.ttest_1samp(x - y, 0, axis=1).pvalue for x, y in ((a, b), (a, c), (b, c))]
    assert pairs[0][7] == pytest.approx(paired_difference(a[7], b[7]).p_value)
    assert 0.043 <= (pairs[0] < 0.05).mean() <= 0.057
    corrected = np.array([holm(p).min() for p in np.transpose(pairs)])
    assert (np.min(pairs, 0) < 0.05).mean() > 0.1 and 0.03 < (corrected < 0.05).mean() <= 0.055


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    with pytest.raises(FewshotError, match="between 0 and 1"):
        holm([1.2])


def test_ranks_against_scipy_and_the_published_critical_difference():
    values = np.random.default_rng(0).random((4, 14)).round(1)  # with ties
    found = rank(values)
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*values).pvalue)
    assert sum(found.ranks) == pytest.approx(10) and found.blocks == 14
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)  # Demsar 2006, section 3.2.4: 4 methods, 14 sets
    assert rank([[0.9, 0.8], [0.1, 0.2]]).ranks == (1, 2)
    assert rank([[0.5, 0.5], [0.5, 0.5]]).p_value == 1
    with pytest.raises(FewshotError, match="at least 2 methods"):
        rank([[0.1, 0.2]])


def test_concordance_is_one_where_all_blocks_agree():
    values = np.arange(4)[:, None] + np.zeros((4, 7))
    assert rank(values).concordance == pytest.approx(1)
    assert rank(np.stack([values[:, 0], -values[:, 0]], 1)).concordance == pytest.approx(0)
    # Kendall's formula without ties: W = 12 S / (B^2 (K^3 - K)).
    scores = np.random.default_rng(0).normal(size=(5, 6)) + np.arange(5)[:, None]
    sums = scores.argsort(0).argsort(0).sum(1) + 6
    assert rank(scores).concordance == pytest.approx(12 * ((sums - sums.mean()) ** 2).sum() / (36 * (125 - 5)))


def test_the_rank_test_rarely_tells_equal_methods_apart():
    rng = np.random.default_rng(6)
    found = [rank(rng.random((4, 40))) for _ in range(300)]
    assert np.mean([max(f.ranks) - min(f.ranks) > f.critical_difference for f in found]) < 0.09


@pytest.mark.parametrize("groups", [1, 2])
def test_the_planned_number_of_episodes_has_the_power(groups):
    """Simulated: the t-test sees the difference in 80 % of 4,000 repetitions."""
    n = episodes_needed(0.02, 0.06, groups=groups)
    rng = np.random.default_rng(groups)
    if groups == 1:
        p = stats.ttest_1samp(rng.normal(0.02, 0.06, (4000, n)), 0, axis=1).pvalue
    else:
        a, b = rng.normal(0, 0.06 / np.sqrt(2), (2, 4000, n))
        p = stats.ttest_ind(a + 0.02, b, axis=1).pvalue
    assert 0.78 <= (p < 0.05).mean() <= 0.82
    assert n == pytest.approx(((1.96 + 0.8416) * 0.06 / 0.02) ** 2, abs=3)


def test_a_plan_says_what_pairing_saves():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0.6, 0.1, 5000)
    a, b = (difficulty + rng.normal(0, 0.02, 5000) for _ in range(2))
    plan = plan_episodes(a, b, 0.005)
    assert plan.factor == pytest.approx((a.var(ddof=1) + b.var(ddof=1)) / (a - b).var(ddof=1), rel=0.02)
    assert 20 < plan.factor < 32 and plan.correlation == pytest.approx(1 / 1.04, abs=0.01) and plan.pilot == 5000
    assert plan_episodes(a, b, 0.0025).paired == pytest.approx(4 * plan.paired, rel=0.02)
    for bad, message in (((a, a, 0.005), "two different methods"), ((a, b, 0.0), "positive"), ((a[:5], b[:5], 1), "10"),
                         ((a, b, 1e-9), "larger one")):
        with pytest.raises(FewshotError, match=message):
            plan_episodes(*bad)
    with pytest.raises(FewshotError, match="power=80"):
        plan_episodes(a, b, 0.005, power=80)


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


def test_comparison_counts_wins_and_ties():
    result = paired_difference([0.5, 0.6, 0.7, 0.7], [0.4, 0.6, 0.6, 0.8])
    assert result.better == 0.5 and result.ties == 0.25 and result.probability == 0.625 and not result.significant
    assert result.p_value == pytest.approx(stats.ttest_1samp([0.1, 0, 0.1, -0.1], 0).pvalue)
    same = paired_difference([0.5, 0.6], [0.5, 0.6])
    assert same.p_value == 1 and same.difference.mean == 0 and same.ties == 1


def test_unpaired_values_are_refused():
    with pytest.raises(FewshotError, match="3 and 2 episodes"):
        paired_difference([1, 2, 3], [1, 2])
