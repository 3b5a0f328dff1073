"""Prototype adaptation in the manner of Hybrid Consistency Training; a reconstruction, not the authors' method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot.core.checked import check_at_least, check_number, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.distances import cosine, l2_normalise
from fewshot.ops.features import centred_unit
from fewshot.ops.prototypes import one_hot, prototypes


@METHODS.register("hct_adapt")
@dataclass(frozen=True, eq=False)
class HCTAdapt(IterativeMethod):
    """Reconstruction from the abstract of the paper, which has no public code: "iteratively normalises features and
    adapts prototypes" is taken from there, the exact steps and all constants are this project's. Its results are not
    results of HCT, and the consistency training that the paper is about is not part of it.

    `iterations` times: centre support and queries, each by its own mean, and scale every point to unit length; assign
    u = softmax(scale cos(z, w)); move the prototypes w by `step_size` towards the means of support and u-weighted
    queries, and scale them to unit length. The first prototypes are the class means of the normalised support;
    logits = scale cos(z, w) with the last ones. Prototypes lie in the space of the points as last normalised.

    Raises FewshotError for scale <= 0, step_size outside (0, 1] or iterations < 1.
    """

    assumes = ("balanced queries", "reconstruction from the paper's abstract")
    paper = "after Ye et al. 2020, arXiv:2011.10082; no public code"

    scale: float = 10.0
    step_size: float = 0.2
    iterations: int = 20

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)
        check_number("step_size", self.step_size, 0, 1, low_allowed=False)
        check_at_least(1, iterations=self.iterations)

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        labels = one_hot(episodes.support_labels, episodes.ways, episodes.support.dtype).transpose(1, 2)  # [E, N, S]
        trace = []
        for step in range(self.iterations):
            episodes = centred_unit(episodes)
            if step == 0:
                means = l2_normalise(prototypes(episodes))
            assigned = (self.scale * cosine(episodes.query, means)).softmax(-1)  # [E, Q, N]
            total = labels @ episodes.support + assigned.transpose(1, 2) @ episodes.query
            size = labels.sum(-1) + assigned.sum(1)
            means = l2_normalise(torch.lerp(means, total / size.unsqueeze(-1), self.step_size))
            if history:
                trace.append(means)
        return Refinement.of_fixed_steps(self.scale * cosine(episodes.query, means), means, self.iterations,
                                         trace if history else None, episodes if history else None)
