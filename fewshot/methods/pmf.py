"""P>M>F: the backbone is fine-tuned on augmented support images, classified by prototypes that move with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_number, check_positive
from fewshot.methods.bases.test_time_learner import FineTuning, check_found
from fewshot.methods.contract import METHODS
from fewshot.ops.diff_augment import diff_augment
from fewshot.ops.network_blocks import chosen_weights


@METHODS.register("pmf")
@dataclass(frozen=True, eq=False)
class Pmf(FineTuning):
    """The last stage (F) of P>M>F: Adam on the whole backbone, for `steps` steps that minimise the cross-entropy of
    pseudo-queries, which are augmented support images. logits = scale cos(z, c_n), c_n the mean of the features of the
    clean support of class n, computed anew with the present weights. The queries are classified in the same way.

    lr            to be chosen for each domain on validation classes; the paper's values are 0 (no fine-tuning, which is
                  `simple_shot` with norm="un", metric="cosine"), 1e-4, 1e-3 and 1e-2:
                  fewshot tune --method pmf --grid lr=0,0.0001,0.001,0.01
    blocks        of the backbone that are fine-tuned: "all", "last", "none" or numbers such as "2,3"
    probability   of augmenting the images in a step; 0 makes the support itself the pseudo-queries
    seed          of the augmentation, which is the same for every episode

    The other parameters are those of `FineTuning`. For the stages before: any pre-trained backbone (P), trained on
    episodes by prototypes (M; here `fewshot train` with `simple_shot` by cosine, the scale of which is not learned).

    Deviations: scale is a constant, the official code learns it together with a bias that is added to the cosine (which
    changes no probability) when it meta-trains. With support images of equal class, all of a class are pseudo-queries
    in every step, as in the released code.
    """

    paper = "Hu et al. 2022, arXiv:2204.07305; hushell/pmf_cvpr22"

    lr: float = 1e-4
    blocks: str | int | tuple = "all"
    scale: float = 10.0
    probability: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(scale=self.scale)
        check_at_least(0, seed=self.seed)
        check_number("probability", self.probability, 0, 1)

    def adapts(self, network: nn.Module) -> list[str]:
        return check_found(chosen_weights(network, self.blocks), self.blocks, "weights", "choose a backbone with some")

    def augmented(self, step: int, pixels: Tensor) -> Tensor:
        return diff_augment(pixels, self.seed, step, self.probability) if self.probability else pixels
