"""LoRA: updates of low rank for linear layers and convolutions, trained on the support."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from fewshot.core.checked import check_at_least, check_choice, check_positive
from fewshot.core.errors import FewshotError
from fewshot.methods.bases.test_time_learner import FineTuning, Head, check_found
from fewshot.methods.contract import METHODS
from fewshot.methods.film import HEADS
from fewshot.ops.frozen_prefix import Tensors
from fewshot.ops.heads import LinearHead, PrototypeHead, uniform
from fewshot.ops.network_blocks import CONVOLUTIONS, chosen_weights, layers_of


@METHODS.register("lora")
@dataclass(frozen=True, eq=False)
class Lora(FineTuning):
    """W -> W + c B A for the weights of linear layers and of convolutions in one group (flattened to a matrix [outputs,
    inputs x kernel]); everything else is frozen. A [rank, inputs] starts uniform in +-1/sqrt(inputs), B [outputs, rank]
    at 0, so that without steps the features are those of the backbone.

    rank, alpha   c = alpha / rank (`scaling` "rank", Hu et al.) or alpha / sqrt(rank) ("sqrt", rank-stabilised)
    blocks        whose layers are adapted: "all", "last", "none" or numbers such as "2,3"
    match         regular expression that the names of the layers must contain; "" is all. "attn" leaves the query, key,
                  value and output maps of timm's vision transformers (the first three are one layer, qkv, there)
    head, head_lr, scale   as in `film`
    seed          of A, the same for every episode

    The other parameters are those of `FineTuning`. Rank, alpha and scaling are those of CLIP-LoRA.

    Its own implementation, because the package peft requires transformers and changes the given model in place.
    Deviations: no dropout on the branch, Adam without weight decay, and qkv gets one update of rank `rank`, where CLIP-LoRA
    gives one to each of the three.
    """

    paper = "Hu et al. 2021, arXiv:2106.09685; Zanella & Ben Ayed 2024, arXiv:2405.18541, MaxZanella/CLIP-LoRA"

    rank: int = 2
    alpha: float = 1.0
    scaling: str = "sqrt"
    blocks: str | int | tuple = "all"
    match: str = ""
    head: str = "prototypes"
    scale: float = 10.0
    head_lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, rank=self.rank)
        check_at_least(0, seed=self.seed)
        check_positive(alpha=self.alpha, scale=self.scale)
        check_choice(("rank", "sqrt"), scaling=self.scaling)
        check_choice(HEADS, head=self.head)
        try:
            re.compile(self.match)
        except re.error as error:
            raise FewshotError(f"match={self.match!r} is no regular expression ({error}); use e.g. 'qkv|proj'") from None

    def adapts(self, network: nn.Module) -> list[str]:
        layers = layers_of(network, chosen_weights(network, self.blocks), (nn.Linear, *CONVOLUTIONS))
        found = [f"{name}.weight" for name, layer in layers.items()
                 if getattr(layer, "groups", 1) == 1 and re.search(self.match, name)]
        return check_found(found, self.blocks, f"linear layer or convolution with match={self.match!r}",
                           "choose other blocks, or match='' for all layers")

    def start(self, frozen: Tensors) -> Tensors:
        values = {}
        for name, weight in frozen.items():
            outputs, inputs = len(weight), weight[0].numel()
            values[f"{name}.A"] = uniform((self.rank, inputs), inputs**-0.5, self.seed, name).to(weight)
            values[f"{name}.B"] = weight.new_zeros(outputs, self.rank)
        return values

    def adapted(self, values: Tensors, frozen: Tensors) -> Tensors:
        factor = self.alpha / (self.rank if self.scaling == "rank" else self.rank**0.5)
        return {name: weight + self._update(values, name, factor).view(weight.shape) for name, weight in frozen.items()}

    def _update(self, values: Tensors, name: str, factor: float) -> Tensor:
        return factor * (values[f"{name}.B"] @ values[f"{name}.A"])

    @property
    def classifier(self) -> Head:
        return PrototypeHead(self.scale) if self.head == "prototypes" else LinearHead()
