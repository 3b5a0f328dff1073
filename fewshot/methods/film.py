"""FiLM: a scale and a shift for every channel of the normalisation layers, trained on the support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fewshot.core.checked import check_choice, check_positive
from fewshot.methods.bases.test_time_learner import FineTuning, Head, check_found
from fewshot.methods.contract import METHODS
from fewshot.ops.frozen_prefix import Tensors
from fewshot.ops.heads import LinearHead, PrototypeHead
from fewshot.ops.network_blocks import NORMS, chosen_weights, layers_of

HEADS = ("prototypes", "linear")


@METHODS.register("film")
@dataclass(frozen=True, eq=False)
class Film(FineTuning):
    """y -> gamma y + beta after the normalisation layers (BatchNorm, LayerNorm, GroupNorm) of the backbone, everything
    else frozen. gamma starts at 1 and beta at 0, so that without steps the features are those of the backbone. A layer
    that computes w n + b then computes (gamma w) n + (gamma b + beta): no layer is added.

    blocks    whose normalisation layers are adapted: "all", "last", "none" or numbers such as "2,3"
    head      "prototypes": scale cos(z, c_n) with class means of the present features, trained on the support against
              itself; "linear": W z + b of features of unit length, which starts as the nearest class mean
    head_lr   learning rate of the linear head

    The other parameters are those of `FineTuning`; Adam with a rate of 0.0035 is FiT's.

    Deviations from FiT: its head is a Gaussian classifier with learned mixing of covariances (its ProtoNet variant is the
    nearest to "prototypes"); the support is split into two halves at random in each of 400 iterations, where here all of
    it is classified by its own prototypes in `steps` steps. With one shot that leaves only the differences between
    classes to learn from.
    """

    paper = "Shysheya et al. 2022, arXiv:2206.08671; cambridge-mlg/fit"

    lr: float = 0.0035
    blocks: str | int | tuple = "all"
    head: str = "prototypes"
    scale: float = 10.0
    head_lr: float = 0.0035

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(HEADS, head=self.head)
        check_positive(scale=self.scale)

    def adapts(self, network: nn.Module) -> list[str]:
        layers = layers_of(network, chosen_weights(network, self.blocks), NORMS)
        found = [f"{name}.{kind}" for name, layer in layers.items() if layer.bias is not None for kind in ("weight", "bias")]
        return check_found(found, self.blocks, "normalisation layers with weight and bias",
                           "choose other blocks, a backbone with BatchNorm, LayerNorm or GroupNorm, or lora")

    def start(self, frozen: Tensors) -> Tensors:
        return {name: torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
                for name, value in frozen.items()}

    def adapted(self, values: Tensors, frozen: Tensors) -> Tensors:
        weights: Tensors = {}
        for name in frozen:
            if name.endswith("weight"):
                bias, gamma = name.removesuffix("weight") + "bias", values[name]
                weights |= {name: gamma * frozen[name], bias: gamma * frozen[bias] + values[bias]}
        return weights

    @property
    def classifier(self) -> Head:
        return PrototypeHead(self.scale) if self.head == "prototypes" else LinearHead()
