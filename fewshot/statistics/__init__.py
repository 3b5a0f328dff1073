"""Means with intervals that say what they cover, paired comparisons, ranks, how many episodes a difference needs, and
thresholds that cover a stated share."""

from fewshot.statistics.conformal import conformal_rank, conformal_threshold
from fewshot.statistics.intervals import (
    Interval,
    SeedSpread,
    bootstrap_interval,
    class_interval,
    mean_interval,
    seed_spread,
    worst_share,
)
from fewshot.statistics.paired import Comparison, holm, paired_difference
from fewshot.statistics.power import Plan, episodes_needed, plan_episodes
from fewshot.statistics.ranks import Ranking, rank

__all__ = ["Comparison", "Interval", "Plan", "Ranking", "SeedSpread", "bootstrap_interval", "class_interval",
           "conformal_rank", "conformal_threshold", "episodes_needed", "holm", "mean_interval",
           "paired_difference", "plan_episodes", "rank", "seed_spread", "worst_share"]
