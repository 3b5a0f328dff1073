"""TSA: residual adapters on the convolutions and an alignment of the features, trained on the support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.core.checked import check_number, check_positive
from fewshot.core.errors import FewshotError
from fewshot.methods.bases.test_time_learner import FineTuning, Head, check_found
from fewshot.methods.contract import METHODS
from fewshot.ops.frozen_prefix import Tensors
from fewshot.ops.heads import PrototypeHead
from fewshot.ops.network_blocks import CONVOLUTIONS, chosen_weights, layers_of


@METHODS.register("tsa")
@dataclass(frozen=True, eq=False)
class Tsa(FineTuning):
    """Task-specific adapters: W * x -> W * x + alpha x for the convolutions W with a kernel larger than 1, alpha a 1x1
    convolution of the same stride and groups, and the map A of `url` on the features. Trained together by the
    nearest-centroid loss of `url`, everything else frozen.

    A 1x1 convolution beside W is the same as alpha added to the middle of the kernel of W, which is how it is computed:
    the adapters cost nothing.

    lr        learning rate of the adapters;  head_lr: of the map, 0 leaves it out. The defaults are those for domains that
              the backbone was not trained on; 0.05 and 0.1 for those that it was
    initial   alpha starts as `initial` times the identity (1 where output and input channel have the same number within
              their group). 1e-4 in the official code; with 0 the features start exactly as those of the backbone
    blocks    that get adapters: "all", "last", "none" or numbers such as "2,3"
    scale     10 in the official code

    The other parameters are those of `FineTuning`; all defaults are the official ones.

    Deviations: adapters for all larger kernels of the chosen blocks (there 3x3 kernels of the residual blocks of a
    ResNet-18, no stem). In a depthwise convolution alpha has one number a channel, the paper's channel-wise form. Where
    a convolution pads one side only (TensorFlow's padding of stride 2) the middle of the kernel is not where a 1x1
    convolution would read.
    """

    paper = "Li et al. 2022, arXiv:2107.00358; VICO-UoE/URL"

    lr: float = 0.5
    optimiser: str = "adadelta"
    blocks: str | int | tuple = "all"
    head_lr: float = 1.0
    initial: float = 1e-4
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(scale=self.scale)
        check_number("initial", self.initial, 0)

    def adapts(self, network: nn.Module) -> list[str]:
        layers = layers_of(network, chosen_weights(network, self.blocks), CONVOLUTIONS)
        found = {name: layer for name, layer in layers.items() if max(layer.kernel_size) > 1}
        for name, layer in found.items():
            if any(size % 2 == 0 for size in layer.kernel_size):
                raise FewshotError(f"{name} has a kernel of {layer.kernel_size}, which has no middle for an adapter; choose "
                                   "blocks without it, or lora")
        return check_found([f"{name}.weight" for name in found], self.blocks, "convolution with a kernel larger than 1",
                           "choose other blocks, or lora, film or url")

    def start(self, frozen: Tensors) -> Tensors:
        return {name: self.initial * torch.eye(*weight.shape[:2], dtype=weight.dtype).to(weight.device)
                for name, weight in frozen.items()}

    def adapted(self, values: Tensors, frozen: Tensors) -> Tensors:
        return {name: weight + _in_the_middle(values[name], weight.shape[2:]) for name, weight in frozen.items()}

    @property
    def classifier(self) -> Head:
        return PrototypeHead(self.scale, aligned=True)


def _in_the_middle(alpha: Tensor, kernel: torch.Size) -> Tensor:
    """alpha [O, I] -> [O, I, *kernel], zero elsewhere."""
    margins = [size // 2 for size in reversed(kernel) for _ in range(2)]
    return F.pad(alpha.view(*alpha.shape, *[1] * len(kernel)), margins)
