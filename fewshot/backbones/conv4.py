"""Four convolution blocks: the small backbone of Matching and Prototypical Networks."""

from __future__ import annotations

from torch import Tensor, nn

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import photograph_transform
from fewshot.core.errors import FewshotError


@BACKBONES.register("conv4")
class Conv4(Backbone):
    """Four times [3x3 convolution, BatchNorm, ReLU, 2x2 max-pooling], flattened: D = width (image_size // 16)^2, that
    is 64 at 28 pixels and 1600 at 84 for the usual width of 64.

    image_size   default 84; at least 16
    width        channels of every block
    pools        blocks that end in a pooling, the first ones; 2 leaves the maps that Relation Networks and DN4 compare
                 (7x7 at 28 pixels, 21x21 at 84), flattened like the others
    strided      halve by convolutions of stride 2 instead of pooling and average the last map: D = width. MAML's
                 network for Omniglot; a quarter of the work

    Source: Snell et al. 2017, arXiv:1703.05175, section 3.1; jakesnell/prototypical-networks. Finn et al. 2017,
    arXiv:1703.03400, section 5.1; cbfinn/maml. PyTorch's default initialisation.
    """

    smallest = 16
    at_defaults = 1600, 84

    def __init__(self, channels: int, image_size: int | None, *, width: int = 64, pools: int = 4, strided: bool = False):
        size = 84 if image_size is None else image_size
        if width < 1:
            raise FewshotError(f"width={width}; a block needs at least one channel")
        if not 0 <= pools <= 4 or (strided and pools != 4):
            raise FewshotError(f"pools={pools}, strided={strided}; choose 0 to 4 pooled blocks, and strided without pools")
        super().__init__(width if strided else width * (size // 2**pools) ** 2, photograph_transform(channels, size))
        self.strided = strided
        self.blocks = nn.Sequential(*(_block(channels if i == 0 else width, width, i < pools, strided) for i in range(4)))

    def spatial(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # [B, width, h, w]

    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.strided else x.flatten(1)  # [B, D]


def _block(inputs: int, outputs: int, pooled: bool, strided: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2 if strided else 1, padding=1)
    # Pooling before the ReLU gives the same values (ReLU is monotone) and leaves it a quarter of the work.
    pooling = [nn.MaxPool2d(2)] if pooled and not strided else []
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *pooling, nn.ReLU())
