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
from fewshot.ops.distances import l2_normalise, nonzero
from fewshot.ops.prototypes import prototypes
from fewshot.ops.text import logit_scale, unit_texts


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

    The pseudo-inverse is that of a regular matrix, solved here in the smaller of the dimensions S and D. Deviations: the
    ten augmented views of every support image of the paper are items of the support; new classes without images (`transfer`)
    are those of their texts, where the paper makes up statistics from near support items.
    """

    paper = "Wang et al. 2024 (GDA), arXiv:2402.04087; mrflogs/ICLR24"
    needs_text = True
    searched_grid = {"alpha": tuple(10.0**power for power in range(-4, 3))}
    multipliers = ("alpha",)

    alpha: float = 1.0
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, text_scale=self.text_scale)

    @property
    def reused(self) -> tuple[str, ...]:
        return ("alpha",)

    @property
    def works_on_support(self) -> bool:
        return True  # solving its system

    def shared(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """What the texts and the discriminant say, [E, N, Q] each."""
        support, query, ways = l2_normalise(episodes.support), episodes.query, episodes.ways
        means = prototypes(episodes.replace(support=support))
        owner = episodes.support_labels + ways * torch.arange(len(means), device=means.device).unsqueeze(1)
        centred = support - means.flatten(0, 1).index_select(0, owner.flatten()).view_as(support)
        weights = _precision_times(centred, means)
        intercept = -(weights * means).sum(-1, keepdim=True) / 2 - math.log(ways)
        # The queries are read once and not copied: their lengths divide the products.
        lengths = query.norm(dim=-1) if episodes.query_lengths is None else episodes.query_lengths
        products = torch.cat([unit_texts(episodes), weights], 1) @ query.transpose(1, 2) / nonzero(lengths).unsqueeze(1)
        text = self.text_scale * (logit_scale(episodes) * products[:, :ways] + episodes.logit_bias)
        return text, products[:, ways:] + intercept

    def parts(self, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return shared


def _precision_times(centred: Tensor, means: Tensor) -> Tensor:
    """P m_n [E, N, D] for centred items [E, S, D] and means [E, N, D]; 0 where the items are their class means.

    The largest eigenvalue of the sum of squares is at most its trace, (S - 1) t: the system is regular in float32.
    """
    items, dim = centred.shape[1:]
    total = torch.linalg.vector_norm(centred, dim=(1, 2), keepdim=True).square()
    # Items have unit length: what is left of equal ones is rounding.
    spread = total > items * (10 * torch.finfo(centred.dtype).eps) ** 2
    shrinkage = (total / (items - 1)).where(spread, 1)
    rows, columns = centred, centred.transpose(1, 2)
    squares = rows @ columns if items <= dim else columns @ rows
    squares.diagonal(dim1=1, dim2=2).add_(shrinkage.squeeze(-1))
    # A Cholesky factor takes longer where D is a power of two, as in most models: torch clears its other half column by
    # column. The transpose is the same matrix, in the order in which it is factorised.
    squares = squares.transpose(1, 2)
    if items <= dim:  # Woodbury: (C'C + tI)^-1 = (I - C' (CC' + tI)^-1 C) / t
        solved = (means - torch.linalg.solve(squares, rows @ means.transpose(1, 2)).transpose(1, 2) @ rows) / shrinkage
    else:
        solved = torch.linalg.solve(squares, means.transpose(1, 2)).transpose(1, 2)
    return (dim * solved).where(spread, 0)
