"""EM-Dirichlet: transductive classification of class-probability features with one Dirichlet per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Refinement, TwoStageMethod
from fewshot.ops.mixtures import SIMPLEX, dirichlet_em, simplex_features
from fewshot.ops.prototypes import one_hot


@METHODS.register("em_dirichlet")
@dataclass(frozen=True, eq=False)
class EMDirichlet(TwoStageMethod):
    """EM on the simplex: alpha_k fitted to support and softly assigned queries, u = softmax_k(log Dir(z | alpha_k) +
    weight (log pi_k + 1)) with pi the mean of u (Algorithm 1). Logits are log probabilities of the last step.

    iterations     EM steps, 20 in the paper (10 for the hard version)
    k_eff          classes present among the queries, where known: weight = floor(ways / k_eff), the published setting
                   (k_eff=5). None: not known, weight 1
    simplex        how features become class probabilities, see `fewshot.ops.mixtures.simplex_features`; "auto" takes
                   rows that are probabilities as they are, else uses episodes.text, else (our extension) the support
                   means. "cosines": features are the cosines with the class texts
    zero_shot      ignore the support. Clusters are then named by matching their mean class probabilities to the
                   classes (Hungarian algorithm, per episode); needs probability rows or episodes.text
    scale          multiplies cosines before the softmax, 30 in the paper
    mm_steps, mm_tolerance  limit and stopping rule of the M-step, see `fewshot.ops.mixtures.dirichlet_mm`

    The refined prototypes are the Dirichlet parameters [E, N, N] in float64; `converged` tells whether the last M-step
    met its tolerance. It often does not: a compact cluster needs many thousand steps, and the published limit of
    1000 steps (warm-started) is part of the method. Work is done in float64 whatever the input.
    """

    paper = "Martin et al. 2024 (CVPR), transductive CLIP; SegoleneMartin/transductive-CLIP"
    hard: ClassVar[bool] = False

    iterations: int = 20
    k_eff: int | None = None
    simplex: str = "auto"
    zero_shot: bool = False
    scale: float = 30.0
    mm_steps: int = 1000
    mm_tolerance: float = 1e-11

    @property
    def assumes(self) -> tuple[str, ...]:
        return () if self.k_eff is None else ("known K_eff",)

    def __post_init__(self) -> None:
        check_choice(SIMPLEX, simplex=self.simplex)
        if self.zero_shot and self.simplex == "prototypes":
            raise FewshotError("zero_shot=True ignores the support, so simplex='prototypes' does not fit; pass "
                               "episodes.text or probability rows")
        check_at_least(1, iterations=self.iterations, mm_steps=self.mm_steps, k_eff=self.k_eff)

    def reduce(self, episodes: Episodes) -> Episodes:
        if self.k_eff is not None and self.k_eff > episodes.ways:
            raise FewshotError(f"k_eff={self.k_eff} exceeds ways={episodes.ways}; give the number of classes among the "
                               "queries, or None")
        simplex = self.simplex
        if self.zero_shot and simplex == "auto":
            simplex = "rows" if episodes.text is None else "text"
        support, query = simplex_features(episodes, simplex, self.scale)  # [E, S, N], [E, Q, N]
        return Episodes.trusted(support=support, support_labels=episodes.support_labels, query=query, ways=episodes.ways)

    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        query, support = reduced.query, None if self.zero_shot else reduced.support
        weight = 1 if self.k_eff is None else reduced.ways // self.k_eff
        fit = dirichlet_em(support, reduced.support_labels, query, [weight] * self.iterations, [1] * self.iterations,
                           hard=self.hard, steps=self.mm_steps, tolerance=self.mm_tolerance, history=history)
        logits, alpha, visited = fit.logits.log_softmax(1), fit.alpha, fit.visited
        if self.zero_shot:
            order = name_clusters(logits, alpha, query)
            logits, alpha = (torch.gather(x, 1, order.unsqueeze(-1).expand_as(x)) for x in (logits, alpha))
            visited = [torch.gather(x, 1, order.unsqueeze(-1).expand_as(x)) for x in visited]
        taken = torch.full((len(reduced),), self.iterations, device=query.device)
        return Refinement(logits.transpose(1, 2), alpha, taken, fit.met, visited if history else None)


def name_clusters(logits: Tensor, alpha: Tensor, query: Tensor) -> Tensor:
    """[E, N] the cluster that stands for each class: the one-to-one matching of largest total mean class probability.

    logits [E, N, Q] over clusters, alpha [E, N, N], query [E, Q, N] class probabilities. The mean is over the queries a
    cluster wins. Clusters without any take part with the mean of their Dirichlet at a weight of 1e-6, so they only
    fill the classes left over (the official code leaves those out).
    """
    from scipy.optimize import linear_sum_assignment

    members = one_hot(logits.argmax(1), logits.shape[1], query.dtype).transpose(1, 2)  # [E, N, Q]
    size = members.sum(-1, keepdim=True)
    gain = torch.where(size > 0, members @ query / size.clamp_min(1), 1e-6 * alpha / alpha.sum(-1, keepdim=True))
    # The assignment solver takes one matrix at a time; this is the only loop over episodes.
    columns = [linear_sum_assignment(matrix.T, maximize=True)[1] for matrix in gain.detach().cpu().numpy()]
    return torch.as_tensor(np.stack(columns), device=query.device)
