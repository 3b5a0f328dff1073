"""PT-MAP: power transform, then prototypes and an optimal-transport assignment in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_number, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Refinement, TwoStageMethod
from fewshot.ops.distances import l2_normalise
from fewshot.ops.features import centred_unit, power_transform
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.ops.span import to_span
from fewshot.ops.transport import (
    Transport,
    assignment,
    assumed_queries,
    free_columns,
    query_marginals,
    sinkhorn,
    unbalanced_plan,
)

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

    query_weight  None: the mass of every query is 1. A number lets it differ for query_weight KL(mass | 1): a query that is
                  far from every class, as one of another class is, gets less mass, moves the prototypes less, and has a
                  lower highest logit. In units of the squared distance, 0 to 4; `experiments/open_transport.py`
    class_weight  None: the mass of a class is that of the prior. A number lets it differ for class_weight KL(mass | prior)

    With either number the plan is `unbalanced_plan`, and exp(logits) are masses: their softmax has the probabilities.

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
    query_weight: float | None = None
    class_weight: float | None = None

    @property
    def assumes(self) -> tuple[str, ...]:
        return () if self.class_weight is not None else assumed_queries(self.query_prior)

    def __post_init__(self) -> None:
        check_choice(VARIANTS, variant=self.variant)
        check_number("step_size", self.step_size, 0, 1, low_allowed=False)
        check_positive(power=self.power, scale=self.scale)
        check_at_least(0, iterations=self.iterations)
        check_at_least(0, query_weight=self.query_weight, class_weight=self.class_weight)
        if self.class_weight is not None and isinstance(self.query_prior, str) and self.query_prior == "unknown":
            raise FewshotError(f"class_weight={self.class_weight} weighs a prior, and query_prior='unknown' has none; leave "
                               "it out, or give query_prior='balanced'")
        if self._relaxed and self.variant == "official":
            raise FewshotError("variant='official' has balanced plans alone; leave query_weight and class_weight out, or "
                               "choose variant='converged'")

    @property
    def _relaxed(self) -> bool:
        return self.query_weight is not None or self.class_weight is not None

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
        if self._relaxed:
            return self._unbalanced(cost + query.square().sum(-1, keepdim=True), start)
        if self.variant == "converged" or free_columns(cost, self.query_prior):
            return assignment(cost, 1 / self.scale, self.query_prior, start)
        rows, cols = cost.new_ones(cost.shape[:2]), query_marginals(self.query_prior, cost)
        return sinkhorn(cost, rows, cols, 1 / self.scale, 1e-6, 1000, stop="row_sums")

    def _unbalanced(self, cost: Tensor, start: Transport | None) -> Transport:
        """The plan for squared distances [E, Q, N], where sums may differ from the marginals."""
        free = free_columns(cost, self.query_prior)
        cols = query_marginals("balanced" if free else self.query_prior, cost)
        of_query, of_class = (math.inf if weight is None else weight for weight in (self.query_weight, self.class_weight))
        return unbalanced_plan(cost, cost.new_ones(cost.shape[:2]), cols, 1 / self.scale, of_query,
                               0.0 if free else of_class, start=start)
