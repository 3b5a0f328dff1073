"""UNEM-Dirichlet: EM-Dirichlet unrolled into a few layers whose prior weights and temperatures are learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fewshot.core.checked import check_choice
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Refinement, TwoStageMethod
from fewshot.methods.unem_gaussian import UnrolledEM
from fewshot.ops.mixtures import SIMPLEX, dirichlet_em, simplex_features


@METHODS.register("unem_dirichlet")
class UNEMDirichlet(TwoStageMethod, UnrolledEM):
    """EM-Dirichlet with u = softmax_k((log Dir(x | alpha_k) + gamma_l (log pi_k + 1)) / T_l) in layer l, gamma_l =
    softplus(prior_l) and T_l = 1 + softplus(temperature_l), on x = softmax(scale cos) with a learned scale (no
    softplus). Logits are log probabilities.

    layers    10 in the paper
    simplex   what the cosines are, see `fewshot.ops.mixtures.simplex_features`; probability rows are read as
              softmax(30 cos)
    learned   raw values {"scale": s, "prior": [L], "temperature": [L]}; None: the initialisation of the official code
              (scale 30, prior 20, temperature 1)
    mm_steps, mm_tolerance  limit and stopping rule of the M-step, see `fewshot.ops.mixtures.dirichlet_mm`

    Gradients go through every step of the M-step's loop, as in the official code. Refined prototypes are the
    Dirichlet parameters. The values fit one number of classes: those of a 100-way problem collapse 10-way episodes.
    """

    assumes = ("few of the classes among the queries", "fitted on validation episodes")
    paper = "Zhou et al. 2024, arXiv:2412.16739; ZhouLong0/UNEM-Transductive"
    learning = {"epochs": 80, "lr": 0.5, "halve_every": 40, "batch": 15}
    initial = {"scale": 30.0, "prior": 20.0, "temperature": 1.0}

    def __init__(self, layers: int = 10, simplex: str = "auto", learned: Mapping | None = None, mm_steps: int = 1000,
                 mm_tolerance: float = 1e-11):
        super().__init__(layers, learned)
        check_choice(SIMPLEX, simplex=simplex)
        self.simplex, self.mm_steps, self.mm_tolerance = simplex, mm_steps, mm_tolerance

    def reduce(self, episodes: Episodes) -> Episodes:
        support, query = simplex_features(episodes, self.simplex, self.scale.to(torch.float64))
        return Episodes.trusted(support=support, support_labels=episodes.support_labels, query=query, ways=episodes.ways)

    def solve(self, reduced: Episodes, history: bool = False) -> Refinement:
        query = reduced.query
        fit = dirichlet_em(reduced.support, reduced.support_labels, query, *self.schedule(query), steps=self.mm_steps,
                           tolerance=self.mm_tolerance, history=history)
        taken = torch.full((len(reduced),), self.layers, device=query.device)
        logits = fit.logits.log_softmax(1).transpose(1, 2)  # [E, Q, N]
        return Refinement(logits, fit.alpha, taken, fit.met, fit.visited if history else None)
