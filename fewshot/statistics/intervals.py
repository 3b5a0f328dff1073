"""Intervals of means. Each says in `covers` what would have to be drawn again for the mean to move like this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError

EPISODES = "episode sampling"
CLASSES = "episode sampling and the choice of the novel classes"
_ROWS = 1 << 16  # episodes worked on together
_MOST_BCA = 20_000  # values: BCa computes the statistic once without each of them
SEEDS = "the training seed, each with its own error of episode sampling"


@dataclass(frozen=True)
class Interval:
    """mean +- half_width from n values; `covers` says what would have to be redrawn for the mean to move like this.

    bounds  (low, high) of an interval that is not symmetric; half_width is then half its length
    """

    mean: float
    half_width: float
    n: int
    confidence: float = 0.95
    covers: str = EPISODES
    bounds: tuple[float, float] | None = None

    @property
    def low(self) -> float:
        return self.mean - self.half_width if self.bounds is None else self.bounds[0]

    @property
    def high(self) -> float:
        return self.mean + self.half_width if self.bounds is None else self.bounds[1]

    def percent(self) -> str:
        """`81.23 ± 0.19`, both times 100."""
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f}"


def mean_interval(values: ArrayLike, confidence: float = 0.95, covers: str = EPISODES) -> Interval:
    """Student-t interval of the mean of independent values [n] (ddof = 1); n = 1 gives an infinite half width."""
    values = as_values(values)
    check_confidence(confidence)
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), float("inf"), 1, confidence, covers)
    half = special.stdtrit(n - 1, 0.5 + confidence / 2) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(half), n, confidence, covers)


def class_interval(values: ArrayLike, classes: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of the mean over episodes when the novel classes themselves are a sample: how the number would move with
    other classes of the same kind and other episodes.

    values   [E] per-episode accuracy, or a per-episode difference of two methods
    classes  [E, N] the bank's label of each class of each episode

    An episode's value depends on all its N classes (each is also the others' distractor), so the mean over all episodes
    of a pool of C classes is a U-statistic of degree N in the classes. Its variance over pools is estimated by leaving
    out one class, that is all episodes that hold it (Arvesen 1969, "Jackknifing U-statistics"). With m_c the mean of the
    n_c episodes that hold class c, the pseudo-value is b_c = mean + (C-1) N / (C-N) (m_c - mean), and the variance between
    pools is var_c(b_c) / C. Finitely many episodes inflate it: their share, the mean over c of
    ((C-1) N / (C-N))^2 s_c^2 (1/n_c - 1/E) / C, is taken off (the Monte Carlo correction of Wager, Hastie and Efron
    2014, section 3, for the jackknife after the bootstrap), and the episode variance s^2 / E added once:

        V = max(var_c(b_c) - noise, 0) / C + s^2 / E

    The quantile is Student's with Satterthwaite's degrees of freedom (C - 1 for the first part), at least a quarter of
    C - 1: below that, where the classes hardly differ, the interval would be needlessly wide (it still covers too often
    there). The jackknife counts an interaction of k classes k times (Efron and Stein 1981), again on the wide side.
    Cluster-robust two-way variances (Cameron, Gelbach and Miller 2011; Owen 2007) are not used: they treat accuracies of
    different classes in different episodes as independent, which distractors make false.

    Raises FewshotError for shapes that do not fit, for classes that are in fewer than 2 episodes or in all, and for
    fewer than N + 2 classes, where leaving one out says nothing about others.
    """
    values, classes = as_values(values), np.asarray(classes)
    check_confidence(confidence)
    if classes.ndim != 2 or len(classes) != len(values):
        raise FewshotError(f"classes have shape {classes.shape}; expected [E, N] with E={len(values)}")
    episodes, ways = classes.shape
    found = np.unique(np.concatenate([np.unique(classes[rows]) for rows in _blocks(episodes)]))
    pool = len(found)
    if pool < ways + 2:
        raise FewshotError(f"{pool} classes in {ways}-way episodes; an interval over classes needs at least {ways + 2}: "
                           "use fewer ways or a split with more classes")
    mean, count, first, second = values.mean(), np.zeros(pool, np.int64), np.zeros(pool), np.zeros(pool)
    for rows in _blocks(episodes):
        place, wide = np.searchsorted(found, classes[rows]).reshape(-1), np.repeat(values[rows] - mean, ways)
        count += np.bincount(place, minlength=pool)
        first += np.bincount(place, wide, pool)
        second += np.bincount(place, wide**2, pool)
    if count.min() < 2 or count.max() == episodes:
        raise FewshotError(f"a class is in {count.min()} and one in {count.max()} of {episodes} episodes; an interval over "
                           "classes needs each class in at least 2 episodes and in none of them all: evaluate more episodes")
    offset = first / count
    spread = (second - count * offset**2) / (count - 1)
    factor = (pool - 1) * ways / (pool - ways)
    between = np.var(factor * offset, ddof=1) / pool
    noise = factor**2 * np.mean(spread * (1 / count - 1 / episodes)) / pool
    within = values.var(ddof=1) / episodes
    variance = max(between - noise, 0.0) + within
    freedom = variance**2 / (between**2 / (pool - 1) + within**2 / (episodes - 1)) if variance > 0 else pool - 1
    half = special.stdtrit(max(freedom, (pool - 1) / 4), 0.5 + confidence / 2) * np.sqrt(variance)
    return Interval(float(mean), float(half), episodes, confidence, f"{CLASSES} ({pool} classes)")


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95, *, statistic: Callable = np.mean,
                       method: str = "bca", resamples: int = 9999, seed: int = 0, covers: str = EPISODES) -> Interval:
    """Bootstrap interval of `statistic` (which takes `axis`) over independent values [n]: for few or skewed values, and for
    statistics without a formula. `method`: "bca" (bias-corrected and accelerated, Efron 1987) or "percentile". The
    interval is not symmetric: see `low` and `high`. Equal seeds give equal intervals; no global generator is used.
    """
    from scipy import stats  # takes most of a second

    values = as_values(values)
    check_confidence(confidence)
    names = {"bca": "BCa", "percentile": "percentile"}
    check_choice(names, method=method)
    if method == "bca" and len(values) > _MOST_BCA:
        raise FewshotError(f"{len(values)} values; BCa computes the statistic without each of them, for at most "
                           f"{_MOST_BCA}: use mean_interval for a mean, or method='percentile'")
    estimate = float(statistic(values, axis=0))
    if len(values) < 2:
        return Interval(estimate, float("inf"), len(values), confidence, covers)
    if np.ptp(values) == 0:  # nothing to resample; the acceleration of BCa would be 0 / 0
        return Interval(estimate, 0.0, len(values), confidence, covers, (estimate, estimate))
    found = stats.bootstrap((values,), statistic, n_resamples=resamples, batch=max(1, 2**20 // len(values)),
                            confidence_level=confidence, method=names[method], random_state=np.random.default_rng(seed))
    low, high = (float(end) for end in found.confidence_interval)
    return Interval(estimate, (high - low) / 2, len(values), confidence, covers, (low, high))


def worst_share(values: ArrayLike, share: float = 0.1, confidence: float = 0.95) -> Interval:
    """Mean of the worst `share` of the values [n] (the lower conditional value at risk), with its interval.

    q + min(x - q, 0) / share at the share-quantile q has this mean (Rockafellar and Uryasev 2000, theorem 1), and its
    spread gives the standard error, so the interval is Student's t of these values.
    """
    values = as_values(values)
    if not 0 < share <= 1:
        raise FewshotError(f"share={share}; it must lie above 0 and at most at 1, for example 0.1")
    quantile = np.quantile(values, share, method="inverted_cdf")
    return mean_interval(quantile + np.minimum(values - quantile, 0) / share, confidence)


@dataclass(frozen=True)
class SeedSpread:
    """Results of one setting trained with several seeds. `interval` is of the mean over seeds (Student t, n = seeds),
    `spread` the standard deviation between seeds (ddof = 1), `lowest` and `highest` the extreme seeds."""

    interval: Interval
    spread: float
    lowest: float
    highest: float


def seed_spread(means: ArrayLike, confidence: float = 0.95) -> SeedSpread:
    """From the mean accuracy of every training seed [n], at least two. The error of each mean from its episodes is part of
    the spread; more episodes make it small, only more seeds narrow the interval."""
    means = as_values(means)
    if len(means) < 2:
        raise FewshotError("1 training seed; a spread over seeds needs at least 2: train again with another seed")
    return SeedSpread(mean_interval(means, confidence, SEEDS), float(means.std(ddof=1)), float(means.min()),
                      float(means.max()))


def _blocks(episodes: int) -> Iterator[slice]:
    """Rows of a table of episodes, some at a time: a million of them need no large arrays in between."""
    yield from (slice(at, at + _ROWS) for at in range(0, episodes, _ROWS))


def as_values(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise FewshotError(f"values have shape {values.shape}; expected [n] with n of at least 1")
    if not np.isfinite(values).all():
        raise FewshotError(f"value {int(np.flatnonzero(~np.isfinite(values))[0])} is not finite")
    return values


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise FewshotError(f"confidence={confidence}; it must lie between 0 and 1, for example 0.95")
