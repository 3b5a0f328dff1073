"""Fine-tuning: a linear or cosine classifier, and as much of the backbone as one wants, trained on the support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.seeding import derived_seed
from fewshot.methods.bases.test_time_learner import FineTuning, Head
from fewshot.methods.contract import METHODS
from fewshot.ops.heads import INITIAL, CosineHead, LinearHead
from fewshot.ops.network_blocks import block_numbers, blocks_text, chosen_weights

LAYERS = {"head": "none", "last_block": "last", "all": "all"}


@METHODS.register("finetune")
@dataclass(frozen=True, eq=False)
class Finetune(FineTuning):
    """Cross-entropy of a classifier on the support, by gradient steps on the classifier and on the backbone.

    layers       what is trained beside the head: "head" nothing, "last_block", "all", or numbers of blocks such as "2,3"
                 (`fewshot.ops.network_blocks.network_blocks`)
    head         "linear": W z + b; "cosine": s cos(z, w_n) with a learned s that starts at `scale`
    initial      "prototypes": the head starts as the nearest class mean, so that without steps this is `protonet`
                 (linear) or the nearest mean by cosine; "random": from `seed`, the same for every episode
    norm         "l2n" divides features by their length before the head, "un" does not
    head_lr      learning rate of the head;  lr: of the backbone
    batch_size   images a step, in an order from `seed` that is new in every pass; None: the whole support

    The other parameters are those of `FineTuning`. The defaults are an example of the authors' configuration of "A Closer
    Look Again": SGD, 10 passes with a rate of 0.02 for the backbone and 0.1 for the head, cosine to 0, batches of up to
    100, features of unit length, BatchNorm frozen; there the values are searched for on validation tasks, and so should
    they be here. Chen et al. 2019 freeze the backbone (layers="head", norm="un", initial="random", head_lr=0.01,
    batch_size=4, 100 passes); their weight decay of 0.001 and dampening of 0.9 have no counterpart.

    Deviations: `steps` counts steps, not passes. The official linear head starts with weights of 1, so that all classes
    are equal; here it starts as the prototypes.
    """

    paper = ("Luo et al. 2023, arXiv:2301.12246, Frankluox/CloserLookAgainFewShot; Chen et al. 2019, arXiv:1904.04232, "
              "wyharveychen/CloserLookFewShot")

    steps: int = 10
    lr: float = 0.02
    optimiser: str = "sgd"
    schedule: str = "cosine"
    layers: str | int | tuple = "all"
    head: str = "linear"
    initial: str = "prototypes"
    norm: str = "l2n"
    scale: float = 10.0
    head_lr: float = 0.1
    batch_size: int | None = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(("linear", "cosine"), head=self.head)
        check_choice(INITIAL, initial=self.initial)
        check_choice(("un", "l2n"), norm=self.norm)
        check_positive(scale=self.scale)
        check_at_least(0, seed=self.seed)
        check_at_least(1, batch_size=self.batch_size)
        layers = blocks_text(self.layers)
        object.__setattr__(self, "layers", layers)
        if layers not in LAYERS:
            block_numbers(layers, "layers", tuple(LAYERS))

    def adapts(self, network: nn.Module) -> list[str]:
        layers = blocks_text(self.layers)
        return chosen_weights(network, LAYERS.get(layers, layers))

    @property
    def classifier(self) -> Head:
        if self.head == "linear":
            return LinearHead(self.initial, self.norm, self.seed)
        return CosineHead(self.initial, self.scale, self.norm, self.seed)

    def rows(self, step: int, shots: int) -> Tensor | None:
        if self.batch_size is None or self.batch_size >= shots:
            return None
        batches = -(-shots // self.batch_size)
        generator = torch.Generator().manual_seed(derived_seed("finetune", self.seed, step // batches))
        order = torch.randperm(shots, generator=generator)
        return order[step % batches * self.batch_size :][: self.batch_size]
