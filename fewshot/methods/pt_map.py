"""PT-MAP: power transform, then prototypes and an optimal-transport assignment in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_number, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Refinement, TwoStageMethod
from fewshot.ops.distances import l2_normalise
from fewshot.ops.features import centred_unit, power_transform
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.ops.span import to_span
from fewshot.ops.transport import Transport, assignment, assumed_queries, free_columns, query_marginals, sinkhorn

VARIANTS = ("converged", "official")


@METHODS.register("pt_map")
@dataclass(frozen=True, eq=False)
class PTMAP(TwoStageMethod):
    """Features to a power, unit length, centred (support and queries each by their own mean), unit length again. Then,
    `iterations` times: the assignment p of queries to classes is the entropic transport plan of the costs |z - w|^2 at
    regularisation 1 / scale, with row sums 1 and column sums Q * prior; the prototypes w move by `step_size` towards
    the means of support and assigned queries. logits = log p of one more plan at the end.

    power         exponent beta; signed features keep their sign (the paper needs non-negative ones)
    scale         lambda, multiplies the squared distances
    iterations    number of prototype updates
    step_size     alpha
    query_prior   "balanced": Q/N queries per class; a tensor or tuple [N] of class frequencies; "unknown": no column
                  constraint at all, so that p is the softmax of -scale |z - w|^2 (soft k-means with PT-MAP's steps)
    variant       "converged": every plan is solved to convergence; "official": Sinkhorn stops when no row sum changes
                  by more than 1e-6, or after 1000 iterations. That is short of convergence, by how much depends on the
                  episode, and the rows of its plan, so exp(logits), do not quite sum to 1. The official program shares
                  the rule over a batch of tasks; here it holds for each episode alone.

    A single query is centred by the mean of the support, and its plan has no column sums: its own would leave nothing of it.

    Works in the span of the points (the official code reduces by QR), see `fewshot.ops.span`.
    """

    paper = "Hu et al. 2021, arXiv:2006.03806; yhu01/PT-MAP"

    power: float = 0.5
    scale: float = 10.0
    iterations: int = 20
    step_size: float = 0.2
    query_prior: str | Tensor | tuple[float, ...] = "balanced"
    variant: str = "converged"

    @property
    def assumes(self) -> tuple[str, ...]:
        return assumed_queries(self.query_prior)

    def __post_init__(self) -> None:
        check_choice(VARIANTS, variant=self.variant)
        check_number("step_size", self.step_size, 0, 1, low_allowed=False)
        check_positive(power=self.power, scale=self.scale)
        check_at_least(0, iterations=self.iterations)

    @torch.no_grad()
    def reduce(self, episodes: Episodes) -> Episodes:
        episodes = to_span(episodes.with_features(lambda x: power_transform(x, self.power)))
        return centred_unit(episodes.with_features(l2_normalise))

    @torch.no_grad()
    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        query = reduced.query
        labels = one_hot(reduced.support_labels, reduced.ways, query.dtype)
        support_sums, support_counts = labels.transpose(1, 2) @ reduced.support, labels.sum(1)  # [E, N, D], [E, N]
        means = prototypes(reduced)
        found = self._assign(query, means)
        converged, trace, earlier = found.converged, [means], None
        for _ in range(self.iterations):
            counts = (support_counts + found.plan.sum(1)).unsqueeze(-1)
            target = torch.baddbmm(support_sums, found.plan.transpose(1, 2), query) / counts
            means = means + self.step_size * (target - means)
            # Potentials follow the prototypes, which move steadily: going on by the last change is nearly right.
            start = found if earlier is None else found._replace(potentials=torch.lerp(earlier, found.potentials, 1.8))
            earlier, found = found.potentials, self._assign(query, means, start)
            converged = converged & found.converged
            if history:
                trace.append(means)
        logits = found.plan.clamp_min(torch.finfo(query.dtype).tiny).log()
        steps = torch.full((len(reduced),), self.iterations, device=query.device)
        return Refinement(logits, means, steps, converged, trace if history else None,
                          reduced if history else None)

    def _assign(self, query: Tensor, means: Tensor, start: Transport | None = None) -> Transport:
        """The plan for prototypes [E, N, D], from that of similar ones."""
        # |z|^2 is the same for every class, and a plan with given row sums does not depend on it. The product is several
        # times faster with the few classes in front.
        cost = torch.baddbmm(means.square().sum(-1, keepdim=True), means, query.transpose(1, 2), alpha=-2).transpose(1, 2)
        if self.variant == "converged" or free_columns(cost, self.query_prior):
            return assignment(cost, 1 / self.scale, self.query_prior, start)
        rows, cols = cost.new_ones(cost.shape[:2]), query_marginals(self.query_prior, cost)
        return sinkhorn(cost, rows, cols, 1 / self.scale, 1e-6, 1000, stop="row_sums")
