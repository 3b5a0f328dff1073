"""TIM-ADM: transductive information maximisation by alternating directions, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot.core.checked import check_at_least, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.distances import l2_normalise, squared_euclidean
from fewshot.ops.entropy import check_weights, soft_assignments
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.ops.span import to_span


@METHODS.register("tim_adm")
@dataclass(frozen=True, eq=False)
class TIMADM(IterativeMethod):
    """TIM-GD's objective with auxiliary assignments q beside p, minimised in turn (propositions 1 and 2):

        q_in  proportional to  p_in^(1 + conditional) / (sum_i p_in^(1 + conditional))^(marginal / (1 + marginal))
        w_n   minimises a quadratic bound of the objective around the current w, given q

    from the class means, for `iterations` rounds. Unit-length features, p = softmax(-scale / 2 |z - w|^2), and
    logits = -scale / 2 |z - w|^2. All updates combine the points linearly, so this works in their span.

    The weight of the query term in the update of w is S / Q (the numbers of support and query items), as in the
    official code. The iteration amplifies rounding errors with many ways, so that it runs in float64 whatever the input.
    """

    paper = "Boudiaf et al. 2020, arXiv:2008.11297; mboudiaf/TIM"

    cross_entropy: float = 0.1
    marginal: float = 1.0
    conditional: float = 0.1
    scale: float = 15.0
    iterations: int = 150

    @property
    def assumes(self) -> tuple[str, ...]:
        return ("balanced queries",) if self.marginal > 0 else ()

    def __post_init__(self) -> None:
        check_weights(self.cross_entropy, self.marginal, self.conditional)
        check_positive(scale=self.scale)
        check_at_least(0, iterations=self.iterations)

    @torch.no_grad()
    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        dtype = episodes.query.dtype
        episodes = to_span(episodes.to(torch.float64).with_features(l2_normalise))
        points = torch.cat([episodes.support, episodes.query], dim=1)  # [E, S + Q, D]
        labels = one_hot(episodes.support_labels, episodes.ways, points.dtype).transpose(1, 2)  # [E, N, S]
        shots, queries = labels.shape[2], episodes.query.shape[1]
        # One weight per point: support, then queries.
        weight = points.new_full((shots + queries,), shots / queries)
        weight[:shots] = self.cross_entropy / (1 + self.conditional)
        means = prototypes(episodes)
        target = torch.cat([labels, labels.new_empty(*labels.shape[:2], queries)], dim=2) * weight
        of_query = target[..., shots:]
        trace = [means]
        for _ in range(self.iterations):
            p = soft_assignments(points, means, self.scale)  # [E, N, S + Q]
            torch.mul(self._assignments(p[..., shots:]), weight[shots:], out=of_query)
            p *= weight
            at_means = means * p.sum(2, keepdim=True)
            moved = torch.baddbmm(at_means, torch.sub(target, p, out=p), points)
            means = moved / target.sum(2, keepdim=True)
            if history:
                trace.append(means)
        logits = squared_euclidean(episodes.query, means) * (-self.scale / 2)  # [E, Q, N]
        return Refinement.of_fixed_steps(logits.to(dtype), means.to(dtype), self.iterations, trace if history else None,
                                         episodes if history else None)

    def _assignments(self, p: torch.Tensor) -> torch.Tensor:
        """q [E, N, Q] from the query probabilities p [E, N, Q]."""
        sharp = p.pow(1 + self.conditional)
        totals = sharp.sum(2, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        sharp *= totals.pow(-self.marginal / (1 + self.marginal))
        return sharp.div_(sharp.sum(1, keepdim=True))
