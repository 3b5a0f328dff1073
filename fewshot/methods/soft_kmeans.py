"""Soft k-means: class means refined with the soft labels of the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, BaseMean, IterativeMethod, Refinement, fitted
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.features import NORMS, centre_episodes, normalise_episodes
from fewshot.ops.prototypes import one_hot, weighted_means
from fewshot.ops.span import to_span


@METHODS.register("soft_kmeans")
@dataclass(frozen=True, eq=False)
class SoftKMeans(BaseMean, IterativeMethod):
    """Alternate u_qn = softmax_n(-scale |z_q - w_n|^2) and w_n = (sum of the support of n + sum_q u_qn z_q) /
    (shots of n + sum_q u_qn), from the class means on. The support keeps its labels; logits = -scale |z_q - w_n|^2.

    scale       multiplies the squared distances (EASY calls it temperature)
    iterations  most assignments made; 1 is the nearest class mean
    tolerance   an episode stops when no u_qn changes by this much; 0 always makes all `iterations`
    norm        "me": subtract the mean of support and queries, then x/|x| (EASY's name), or "un", "l2n", "cl2n"

    Deviations from EASY: runs to convergence (`easy_transductive` has the published 30 iterations). The iterations are
    made in the span of the points, the final means and logits in the given space. Gradients pass through these final
    means, not through the soft labels.
    """

    assumes = ("balanced queries",)
    paper = "Ren et al. 2018, arXiv:1803.00676, eq. 4-5; constants of EASY, arXiv:2201.09699, ybendou/easy"

    scale: float = 5.0
    iterations: int = 200
    tolerance: float = 1e-5
    norm: str = "me"
    base_mean: Tensor | None = fitted()

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise FewshotError(f"scale={self.scale!r}; it must be positive, or far points get the most weight")
        check_at_least(1, iterations=self.iterations)
        if not self.tolerance >= 0:
            raise FewshotError(f"tolerance={self.tolerance!r}; give 0 (all iterations) or a positive number")
        check_choice(("me", *NORMS), norm=self.norm)

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        if self.norm == "me":
            e = normalise_episodes(centre_episodes(episodes), "l2n")
        else:
            e = normalise_episodes(episodes, self.norm, self.base_mean)
        with torch.no_grad():
            weights, iterations, converged, steps = self._iterate(e, history)
        points = torch.cat([e.support, e.query], 1)

        def means(query_weights: Tensor) -> Tensor:
            known = one_hot(e.support_labels, e.ways, points.dtype)
            return weighted_means(points, torch.cat([known, query_weights.transpose(1, 2)], 1))

        prototypes = means(weights)
        logits = -self.scale * squared_euclidean(e.query, prototypes)
        trace, space = ([means(w) for w in steps], e) if history else (None, None)
        return Refinement(logits, prototypes, iterations, converged, trace, space)

    def _iterate(self, episodes: Episodes, history: bool) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Query weights [E, N, Q] of the final class means, iterations [E], converged [E], weights of every step.

        Classes come before queries here: a softmax over a short last axis is ten times slower.
        """
        e = to_span(episodes)
        query = e.query
        known = one_hot(e.support_labels, e.ways, query.dtype)
        sums, counts = known.transpose(1, 2) @ e.support, known.sum(1).unsqueeze(-1)  # [E, N, D], [E, N, 1]

        result = query.new_zeros(len(e), e.ways, query.shape[1])
        iterations = torch.full((len(e),), self.iterations, device=query.device)
        # Without a tolerance the number of steps is the definition of the method, not a failure to converge.
        converged = torch.full((len(e),), self.tolerance == 0, device=query.device)
        active = torch.arange(len(e), device=query.device)
        weights, steps = result.clone(), []
        for iteration in range(1, self.iterations + 1):
            if history:
                steps.append(result.clone())
                steps[-1][active] = weights
            if iteration == self.iterations:
                break
            means = (sums + weights @ query) / (counts + weights.sum(-1, keepdim=True))
            # |z|^2 is the same for every class: leaving it out changes no probability.
            squares = means.square().sum(-1, keepdim=True)  # [E, N, 1]
            scores = torch.baddbmm(squares, means, query.transpose(1, 2), beta=-self.scale, alpha=2 * self.scale)
            new = scores.softmax(1)  # [E, N, Q]
            done = (new - weights).abs().amax((1, 2)) < self.tolerance
            if done.any():
                result[active[done]] = weights[done]
                iterations[active[done]] = iteration
                converged[active[done]] = True
                keep = ~done
                active, new, query, sums, counts = (t[keep] for t in (active, new, query, sums, counts))
            weights = new
            if not len(active):
                break
        result[active] = weights
        return result, iterations, converged, steps


@METHODS.register("easy_transductive")
@dataclass(frozen=True, eq=False)
class EasyTransductive(SoftKMeans):
    """Preset of `soft_kmeans`: the transductive classifier of EASY as published, 30 iterations with scale 5 on features
    that are centred per episode and L2-normalised (`--postprocessing ME --transductive-temperature-softkmeans 5`).

    The labels are those of the 30th assignment; the update of the means that the official code makes after it has no
    effect and is not made.
    """

    paper = "Bendou et al. 2022, arXiv:2201.09699; ybendou/easy few_shot_eval.py"

    iterations: int = 30
    tolerance: float = 0.0
