"""Interval bound interpolation: artificial episodes between training episodes and their interval bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewshot.core.checked import check_positive
from fewshot.training.losses.base import LOSSES
from fewshot.training.losses.interval import IntervalLoss
from fewshot.training.types import Moment


@LOSSES.register("ibi")
@dataclass(frozen=True, eq=False)
class Ibi(IntervalLoss):
    """`ibp`, and one random episode of every step gets an artificial twin: after the first blocks the maps of class n are
    (1 - lambda_n) nominal + lambda_n bound, with lambda_n from Beta(alpha, beta) and the upper or the lower bound by a
    coin for the class. The episode's cross-entropy is the mean of its own and the twin's, also in the inner loop of a
    gradient-based learner. Further parameters: see `IntervalLoss`.

    alpha, beta   of the Beta distribution; the official code has no defaults, those here are not tuned

    The choice of the episode, lambda and the coins are those of a generator seeded by the seed of the training and the
    number of the step. The labels of the queries decide how the twin's queries are made, in training only.

    Deviations from the official code: there the episode is chosen by np.random.rand(0, B), an empty array, so that no
    episode ever gets a twin; here it is a random integer below B. Lambda and coins are drawn once for an episode, so that
    its support and queries, in all inner steps, are one task; the code draws anew in every forward pass.
    """

    paper = "Datta et al. 2022, arXiv:2204.03511; SankhaSubhra/maml-ibp-ibi"

    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(alpha=self.alpha, beta=self.beta)

    def _twin(self, moment: Moment, ways: int) -> tuple[int | None, Tensor | None]:
        generator = np.random.default_rng([moment.seed, moment.step])
        number = moment.step * moment.episodes_per_step + int(generator.integers(moment.episodes_per_step))
        share, up = generator.beta(self.alpha, self.beta, ways), generator.integers(0, 2, ways)
        positions = (moment.numbers == number).nonzero().flatten().tolist()
        # In a step of several passes the chosen episode is in one of them.
        return (positions[0], torch.from_numpy(np.where(up, share, -share))) if positions else (None, None)
