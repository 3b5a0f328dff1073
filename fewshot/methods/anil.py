"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.methods.bases.gradient_learner import HEAD, GradientMethod
from fewshot.methods.contract import METHODS


@METHODS.register("anil")
@dataclass(frozen=True, eq=False)
class Anil(GradientMethod):
    """MAML whose inner loop changes the linear head alone; backbone and head are meta-learned through it.

    Parameters: see `GradientMethod`. The features of support and query are computed once, which makes it several times
    cheaper than MAML. With batch_norm="batch" the support is normalised by its own statistics, the query set by its own.
    """

    paper = "Raghu et al. 2020, arXiv:1909.09157"

    def adapts(self, name: str) -> bool:
        return name in HEAD
