"""Hard EM-Dirichlet: EM-Dirichlet with one-hot assignments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewshot.methods.contract import METHODS
from fewshot.methods.em_dirichlet import EMDirichlet


@METHODS.register("hard_em_dirichlet")
@dataclass(frozen=True, eq=False)
class HardEMDirichlet(EMDirichlet):
    """EM-Dirichlet whose E-step assigns every query to its most probable class, 10 iterations in the paper.

    The logits are the log probabilities before that last arg max; the official code returns the one-hot labels. All
    other hyper-parameters as in `EMDirichlet`.
    """

    hard: ClassVar[bool] = True

    iterations: int = 10
