"""ProKeR: kernel ridge regression of what the texts get wrong on the support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_positive
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod, linear
from fewshot.methods.contract import METHODS
from fewshot.ops.distances import l2_normalise
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import logit_scale, text_logits, unit_texts

# Up to this ratio of support to ridge, a bound of that of the eigenvalues. The answer loses much fewer digits than the
# coefficients, whose errors lie where the kernel is small: on 1,600 items 1e-4 of it at the limit of float32.
_CONDITION = {torch.float32: 1e6, torch.float64: 1e12}


@dataclass(frozen=True, eq=False)
class _Kernels:
    """text [E, N, Q] logits by the texts alone; support [E, S, S] and query [E, S, Q] kernels with the support; residuals
    [E, S, N] of the texts on it; scale of the logits."""

    text: Tensor
    support: Tensor
    query: Tensor
    residuals: Tensor
    scale: float


@METHODS.register("proker")
@dataclass(frozen=True)
class ProKeR(GridMethod):
    """The answer of the texts, corrected by a function of the features that is regularised towards it:

        logits_n = text_scale (scale cos(q, w_n) + bias) + scale sum over support i of k(q, x_i) A_in,
        A = (K / ridge + I)^-1 (Y - text_scale cos(x, w)),   k(x, y) = exp(-beta (1 - cos(x, y)))

    with K the kernel of the support and Y its one-hot labels. ridge -> 0 is `zero_shot`; for ridge -> infinity the residuals
    are added up as the votes of `tip_adapter` are.

    beta         how fast the kernel falls with the distance
    ridge        the official lambda: how far the answer may move from that of the texts. The official grids are 20 values of
                 beta from 0.5 to 3 and 10 of ridge from 0.001 to 1; the defaults are those that the program takes from
                 ImageNet for 4 shots (3, 2.6, 1.5, 1.66, 1.7 and 0.05, 0.05, 0.05, 0.07, 0.1 for 1, 2, 4, 8, 16)
    text_scale   weight of the texts; 0 leaves them out

    Deviations: the official logits are these divided by scale, as if the model had a scale of 1; predictions are the same.
    Solved in float64 where float32 does not hold both kernel and ridge.

    Raises FewshotError for a ridge so small that float64 does not resolve it either.
    """

    paper = "Bendou et al. 2025 (ProKeR), arXiv:2501.11175; omarnust/BReg-Adapter (a mirror)"
    needs_text = True
    searched_grid = {"beta": linear(0.5, 3, 20), "ridge": linear(0.001, 1, 10)}

    beta: float = 1.5
    ridge: float = 0.05
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, beta=self.beta, text_scale=self.text_scale)
        check_positive(ridge=self.ridge)

    @property
    def reused(self) -> tuple[str, ...]:
        return ("ridge",)

    @property
    def works_on_support(self) -> bool:
        return True  # solving its system

    def shared(self, episodes: Episodes) -> _Kernels:
        support, query = l2_normalise(episodes.support), l2_normalise(episodes.query)
        residuals = one_hot(episodes.support_labels, episodes.ways, support.dtype)
        residuals = residuals - self.text_scale * support @ unit_texts(episodes).transpose(1, 2)
        return _Kernels(text_logits(episodes, self.text_scale).transpose(1, 2), self._kernel(support, support),
                        self._kernel(support, query), residuals, logit_scale(episodes))

    def parts(self, shared: _Kernels) -> tuple[Tensor]:
        corrections = self._coefficients(shared).transpose(1, 2) @ shared.query
        return (torch.add(shared.text, corrections, alpha=shared.scale),)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.beta * (x @ y.transpose(1, 2) - 1)).exp_()

    def _coefficients(self, shared: _Kernels) -> Tensor:
        """A [E, S, N]."""
        kernel, residuals, items = shared.support, shared.residuals, shared.support.shape[1]
        if items > _CONDITION[kernel.dtype] * self.ridge:
            if items > _CONDITION[torch.float64] * self.ridge:
                raise FewshotError(f"ridge={self.ridge!r} is too small for a support of {items}, even in float64; give at "
                                   f"least {items / _CONDITION[torch.float64]:.1g}, or take zero_shot")
            kernel, residuals = kernel.double(), residuals.double()
        kernel = kernel + self.ridge * torch.eye(items, dtype=kernel.dtype, device=kernel.device)
        # The transpose is the same matrix, in the order in which it is factorised.
        return self.ridge * torch.linalg.solve(kernel.transpose(1, 2), residuals).to(shared.residuals.dtype)
