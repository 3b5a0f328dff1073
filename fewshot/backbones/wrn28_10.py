"""Wide ResNet 28-10, the usual large backbone of transductive methods."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import photograph_transform
from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError


@BACKBONES.register("wrn28_10")
class WideResNet(Backbone):
    """Twelve pre-activation blocks in three stages of 160, 320, 640 channels and strides 1, 2, 2, a last
    BatchNorm-ReLU and global average pooling: D = 640, non-negative.

    image_size   default None: images keep their size; S2M2's features were made at 80 pixels
    drop_rate    dropout between the two convolutions of a block, in train mode
    variant      "s2m2", as in Mangla et al. 2020; or "simple_shot", as SimpleShot, LaplacianShot, TIM, RFS and FEAT have
                 it: convolutions with bias, the stride in a block's second convolution, and shortcuts that take the
                 block's input before the activation

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146; nupurkmr9/S2M2_fewshot, mileyan/simple_shot.
    """

    at_defaults = 640, None

    def __init__(self, channels: int, image_size: int | None, *, drop_rate: float = 0.0, variant: str = "s2m2"):
        if variant not in ("s2m2", "simple_shot"):
            raise FewshotError(f"variant={variant!r}; choose 's2m2' or 'simple_shot'")
        check_number("drop_rate", drop_rate, 0, 1, high_allowed=False)
        super().__init__(640, photograph_transform(channels, image_size))
        plain = variant == "simple_shot"
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=plain)
        blocks, inputs = [], 16
        for outputs, stride in ((160, 1), (320, 2), (640, 2)):
            for i in range(4):
                blocks.append(_Block(inputs, outputs, stride if i == 0 else 1, drop_rate, plain))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(640)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def spatial(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.blocks(self.conv(x))))  # [B, 640, h, w]

    def stages(self) -> list[nn.Module]:
        return [self.blocks[3], self.blocks[7], self.blocks[11]]  # the ends of the three widths


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float, plain: bool):
        super().__init__()
        first, second = (1, stride) if plain else (stride, 1)
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, first, padding=1, bias=plain)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, second, padding=1, bias=plain)
        self.drop = nn.Dropout(drop_rate)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=plain) if inputs != outputs else None
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(self.drop(F.relu(self.bn2(self.conv1(activated)))))
        # In S2M2 a block that changes the width takes its shortcut after the activation, the others before it.
        return out + (x if self.shortcut is None else self.shortcut(x if self.plain else activated))
