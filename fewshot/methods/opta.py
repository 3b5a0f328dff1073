"""OpTA: prototypes transported onto the queries, then a linear classifier on the prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_number, check_positive
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Refinement, TwoStageMethod
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.features import standardise
from fewshot.ops.linear import fit_logistic
from fewshot.ops.prototypes import prototypes
from fewshot.ops.span import to_span
from fewshot.ops.transport import assignment, assumed_queries, free_columns, query_marginals, sinkhorn

VARIANTS = ("converged", "official")


@METHODS.register("opta")
@dataclass(frozen=True, eq=False)
class OpTA(TwoStageMethod):
    """The inference step of BECLR. Every feature vector is standardised over its channels (mean 0, unbiased standard
    deviation 1). A pass moves prototype n to the mean of the queries weighted by column n of the entropic transport
    plan between queries and prototypes, at costs |z - w|^2 divided by their maximum. logits are those of multinomial
    logistic regression fitted to the N prototypes as its only training items. A single query would draw all prototypes
    onto itself: they stay where they are.

    reg             entropy regularisation of the plan, relative to the largest cost
    passes, keep    number of passes, and the weight of the untransported prototypes after them; None for the authors'
                    choice: 5 and 0 for 1 shot (support items / ways), 1 and 0.3 otherwise
    C               inverse regularisation of the logistic regression, see `fewshot.ops.linear.fit_logistic`
    query_prior     "balanced": all classes equally frequent in the queries; a tensor or tuple [N] of class frequencies;
                    "unknown": no constraint on the columns of the plan. A class of frequency 0 keeps its prototype.
    variant         "converged", or "official": Sinkhorn stops when the potentials of the prototypes change by less than
                    1e-4 in sum, or after 1000 iterations, with 1e-8 added to the marginals

    Depends on inner products only after the standardisation and works in the span of the points. The classifier is
    solved to convergence; scikit-learn's default tolerance in the official code stops before that.
    """

    paper = "Poulakakis-Daktylidis and Jamali-Rad 2024 (BECLR), ICLR; stypoumic/BECLR"

    reg: float = 0.05
    passes: int | None = None
    keep: float | None = None
    C: float = 1.0
    query_prior: str | Tensor | tuple[float, ...] = "balanced"
    variant: str = "converged"

    @property
    def assumes(self) -> tuple[str, ...]:
        return assumed_queries(self.query_prior)

    def __post_init__(self) -> None:
        check_choice(VARIANTS, variant=self.variant)
        if self.keep is not None:
            check_number("keep", self.keep, 0, 1)
        check_positive(reg=self.reg, C=self.C)
        check_at_least(0, passes=self.passes)

    @torch.no_grad()
    def reduce(self, episodes: Episodes) -> Episodes:
        return to_span(episodes.with_features(standardise))

    @torch.no_grad()
    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        one_shot = reduced.support.shape[1] <= reduced.ways
        passes = self.passes if self.passes is not None else 5 if one_shot else 1
        keep = self.keep if self.keep is not None else 0.0 if one_shot else 0.3
        query = reduced.query
        if query.shape[1] == 1:
            passes = 0
        first = means = prototypes(reduced)
        converged = torch.ones(len(reduced), dtype=torch.bool, device=query.device)
        trace = [means]
        for _ in range(passes):
            plan, solved = self._plan(squared_euclidean(query, means))
            mass = plan.sum(1).unsqueeze(-1)  # [E, N, 1]
            means = torch.where(mass > 0, plan.transpose(1, 2) @ query / mass, means)
            converged &= solved
            trace.append(means)
        means = (1 - keep) * means + keep * first
        labels = torch.arange(reduced.ways, device=query.device).expand(len(reduced), -1)
        head = fit_logistic(means, labels, reduced.ways, self.C)
        steps = torch.full((len(reduced),), passes, device=query.device)
        return Refinement(head(query), means, steps, converged & head.converged, trace if history else None,
                          reduced if history else None)

    def _plan(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """(plan [E, Q, N], solved [E]) for cost [E, Q, N]; only the proportions within a column matter."""
        cost = cost / cost.amax((1, 2), keepdim=True).clamp_min(torch.finfo(cost.dtype).tiny)
        if self.variant == "converged" or free_columns(cost, self.query_prior):
            found = assignment(cost, self.reg, self.query_prior)
            return found.plan, found.converged
        queries = cost.shape[1]
        cols = query_marginals(self.query_prior, cost) / queries
        rows = cost.new_full(cost.shape[:2], 1 / queries)
        found = sinkhorn(cost.transpose(1, 2), cols + 1e-8, rows + 1e-8, self.reg, 1e-4, 1000, stop="potentials")
        return found.plan.transpose(1, 2), found.converged
