"""Body only update in the inner loop: the counterpart of ANIL."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.methods.bases.gradient_learner import HEAD, GradientMethod
from fewshot.methods.contract import METHODS


@METHODS.register("boil")
@dataclass(frozen=True, eq=False)
class Boil(GradientMethod):
    """MAML whose inner loop changes the backbone and leaves the linear head as it is; both are meta-learned.

    Parameters: see `GradientMethod`.
    """

    paper = "Oh et al. 2021, arXiv:2008.08882"

    def adapts(self, name: str) -> bool:
        return name not in HEAD
