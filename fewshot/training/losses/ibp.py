"""Interval bound propagation for few training tasks."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.training.losses.base import LOSSES
from fewshot.training.losses.interval import IntervalLoss


@LOSSES.register("ibp")
@dataclass(frozen=True, eq=False)
class Ibp(IntervalLoss):
    """Keeps the surroundings of training images together: the cross-entropy of the queries, and the distances of their
    maps to the interval bounds. See `IntervalLoss` for the formula, the parameters and what it can be used with."""

    paper = "Datta et al. 2022, arXiv:2204.03511; SankhaSubhra/maml-ibp-ibi"
