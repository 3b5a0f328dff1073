"""URL: a linear map of the features, trained on the support by the nearest-centroid loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fewshot.core.checked import check_positive
from fewshot.methods.bases.test_time_learner import FineTuning, Head
from fewshot.methods.contract import METHODS
from fewshot.ops.heads import PrototypeHead


@METHODS.register("url")
@dataclass(frozen=True, eq=False)
class Url(FineTuning):
    """Pre-classifier alignment: z -> A z with A [D, D] that starts as the identity and minimises the cross-entropy of
    scale cos(A z_i, A c_n) of the support against its own class means c_n. The backbone is frozen: the features are
    computed once.

    lr      learning rate of A: 1 for domains that the backbone was not trained on, 0.1 for those that it was
    scale   10 in the official code

    The other parameters are those of `FineTuning`; all defaults are the official ones. The backbone of the paper is
    distilled from eight networks, here it is whichever is given. With one shot an image is its own class mean, so that
    only the differences between classes are learned from. Deviations: none in the adaptation.
    """

    paper = "Li et al. 2021, arXiv:2103.13841; VICO-UoE/URL"

    lr: float = 1.0
    optimiser: str = "adadelta"
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(scale=self.scale)

    def adapts(self, network: nn.Module) -> list[str]:
        return []

    @property
    def classifier(self) -> Head:
        return PrototypeHead(self.scale, aligned=True)

    @property
    def rate_of_head(self) -> float:
        return self.lr
