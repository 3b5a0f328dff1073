"""GDA: what the texts say, plus Gaussian discriminant analysis of the support."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod
from fewshot.methods.contract import METHODS
from fewshot.ops.distances import l2_normalise
from fewshot.ops.prototypes import prototypes
from fewshot.ops.text import text_logits


@METHODS.register("gda")
@dataclass(frozen=True)
class GDA(GridMethod):
    """Normal distributions with the class means m_n of the support and one covariance, beside the classifier made of texts:

        logits_n = text_scale (scale cos(q, w_n) + bias) + alpha (q P m_n - m_n P m_n / 2 - log N),
        P = D (sum_i c_i c_i' + t I)^-1,   t = sum_i |c_i|^2 / (S - 1)

    with queries and support of unit length, c_i the support items minus their class means. The shrinkage of P (Kubokawa and
    Srivastava) leaves nothing to tune. alpha=0 is `zero_shot`.

    alpha        weight of the discriminant; the official program searches 1e-4, 1e-3, ..., 100
    text_scale   weight of the texts; 0 leaves them out

    With one shot in every class there is no covariance: P is 0, as the pseudo-inverse of the program, and the logits are
    those of `zero_shot` plus a constant (all equal with text_scale=0). Classes of one shot beside others are fine.

    The pseudo-inverse is that of a regular matrix, solved here by its Cholesky factor, in the smaller of the dimensions S
    and D. Deviations: none; the ten augmented views of every support image of the paper are items of the support.
    """

    paper = "Wang et al. 2024 (GDA), arXiv:2402.04087; mrflogs/ICLR24"
    needs_text = True
    multipliers = ("alpha",)

    alpha: float = 1.0
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, text_scale=self.text_scale)

    @property
    def reused(self) -> tuple[str, ...]:
        return ("alpha",)

    def shared(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """What the texts and the discriminant say, [E, N, Q] each."""
        support = l2_normalise(episodes.support)
        means = prototypes(episodes.replace(support=support))
        centred = support - means.take_along_dim(episodes.support_labels.unsqueeze(-1), 1)
        weights = _precision_times(centred, means)
        intercept = -(weights * means).sum(-1, keepdim=True) / 2 - math.log(episodes.ways)
        found = torch.baddbmm(intercept, weights, l2_normalise(episodes.query).transpose(1, 2))
        return text_logits(episodes, self.text_scale).transpose(1, 2), found

    def parts(self, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return shared


def _precision_times(centred: Tensor, means: Tensor) -> Tensor:
    """P m_n [E, N, D] for centred items [E, S, D] and means [E, N, D]; 0 where the items are their class means.

    The largest eigenvalue of the sum of squares is at most its trace, (S - 1) t: the system is regular in float32.
    """
    items, dim = centred.shape[1:]
    total = centred.square().sum((1, 2))[:, None, None]
    # Items have unit length: what is left of equal ones is rounding.
    spread = total > items * (10 * torch.finfo(centred.dtype).eps) ** 2
    shrinkage = (total / (items - 1)).where(spread, 1)
    rows, columns = centred, centred.transpose(1, 2)
    squares = rows @ columns if items <= dim else columns @ rows
    squares.diagonal(dim1=1, dim2=2).add_(shrinkage.squeeze(-1))
    factor = torch.linalg.cholesky(squares)
    if items <= dim:  # Woodbury: (C'C + tI)^-1 = (I - C' (CC' + tI)^-1 C) / t
        solved = (means - torch.cholesky_solve(rows @ means.transpose(1, 2), factor).transpose(1, 2) @ rows) / shrinkage
    else:
        solved = torch.cholesky_solve(means.transpose(1, 2), factor).transpose(1, 2)
    return (dim * solved).where(spread, 0)
