"""Four convolution blocks: the small backbone of Matching and Prototypical Networks."""

from __future__ import annotations

from torch import Tensor, nn

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import photograph_transform
from fewshot.errors import FewshotError


@BACKBONES.register("conv4")
class Conv4(Backbone):
    """Four times [3x3 convolution, BatchNorm, ReLU, 2x2 max-pooling], flattened: D = width (image_size // 16)^2, that
    is 64 at 28 pixels and 1600 at 84 for the usual width of 64.

    image_size   default 84; at least 16
    width        channels of every block

    Source: Snell et al. 2017, arXiv:1703.05175, section 3.1; jakesnell/prototypical-networks. PyTorch's default
    initialisation, as there.
    """

    smallest = 16

    def __init__(self, channels: int, image_size: int | None, *, width: int = 64):
        size = 84 if image_size is None else image_size
        if width < 1:
            raise FewshotError(f"width={width}; a block needs at least one channel")
        super().__init__(width * (size // 16) ** 2, photograph_transform(channels, size))
        self.blocks = nn.Sequential(*(_block(channels if i == 0 else width, width) for i in range(4)))

    def spatial(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # [B, width, h, w]

    def pool(self, x: Tensor) -> Tensor:
        return x.flatten(1)  # [B, width h w]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    # Pooling before the ReLU gives the same values (ReLU is monotone) and leaves it a quarter of the work.
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.MaxPool2d(2), nn.ReLU())
