"""ResNet-12, the usual mid-size backbone at 84 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import photograph_transform
from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError


@BACKBONES.register("resnet12")
class ResNet12(Backbone):
    """Four residual blocks of three 3x3 convolutions with 64, 160, 320, 640 channels, LeakyReLU(0.1) and 2x2
    max-pooling, then global average pooling: D = 640.

    image_size    default None: images keep their size; at least 16
    width         channels of the first block; the others have 2.5, 5 and 10 times as many, and D = 10 width
    squeeze       squeeze-and-excitation by a quarter of the channels at the end of every block's convolutions (RFS's
                  seresnet12)
    drop_rate     in train mode, dropout after blocks 1 and 2, DropBlock after 3 and 4
    block_size    side of the dropped squares
    drop_warmup   batches over which DropBlock's rate grows linearly from 0 to `drop_rate`

    Source: Lee et al. 2019 (MetaOptNet), arXiv:1904.03758, and kjunelee/MetaOptNet; FEAT uses the same network. MetaOpt
    itself leaves out the average pooling: reduce="flatten". Deviations: the dropped square is never larger than the map,
    so that small images work (the original fails below 70 pixels); the batch counter of the warm-up is that of BatchNorm,
    which is saved with the weights.
    """

    smallest = 16
    at_defaults = 640, None

    def __init__(self, channels: int, image_size: int | None, *, drop_rate: float = 0.1, block_size: int = 5,
                 drop_warmup: int = 40_000, width: int = 64, squeeze: bool = False):
        if width < 2:
            raise FewshotError(f"width={width}; a block needs at least two channels")
        check_number("drop_rate", drop_rate, 0, 1, high_allowed=False)
        if block_size < 1:
            raise FewshotError(f"block_size={block_size}; a dropped square has at least one position")
        super().__init__(10 * width, photograph_transform(channels, image_size))
        widths = (channels, width, 5 * width // 2, 5 * width, 10 * width)
        drops = (nn.Dropout(drop_rate), nn.Dropout(drop_rate),
                 DropBlock(drop_rate, block_size, drop_warmup), DropBlock(drop_rate, block_size, drop_warmup))
        self.blocks = nn.Sequential(*(_Block(widths[i], widths[i + 1], drop, squeeze) for i, drop in enumerate(drops)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def spatial(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # [B, D, h, w]

    def stages(self) -> list[nn.Module]:
        return list(self.blocks)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, drop: nn.Module, squeeze: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.se = nn.Sequential(nn.Linear(outputs, outputs // 4), nn.ReLU(), nn.Linear(outputs // 4, outputs),
                                nn.Sigmoid()) if squeeze else None
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        out = F.leaky_relu(self.bn2(self.conv2(out)), 0.1)
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = out * self.se(out.mean((2, 3)))[:, :, None, None]
        out = out + self.shortcut(x)
        # Pooling first gives the same values (LeakyReLU is monotone) for a quarter of the work.
        out = F.leaky_relu(F.max_pool2d(out, 2), 0.1)
        if isinstance(self.drop, DropBlock):
            return self.drop(out, self.bn3.num_batches_tracked)
        return self.drop(out)


class DropBlock(nn.Module):
    """Zero random squares of every channel's map in train mode and rescale what is left.

    A square's seed is drawn with probability gamma = rate / b^2 * h w / ((h - b + 1) (w - b + 1)) at every position
    where it fits, with b = min(block_size, h, w). Source: Ghiasi et al. 2018, arXiv:1810.12890, eq. 1.
    """

    def __init__(self, rate: float, block_size: int, warmup: int):
        super().__init__()
        self.rate, self.block_size, self.warmup = rate, block_size, warmup

    def forward(self, x: Tensor, batches: Tensor) -> Tensor:
        """x [B, C, h, w]; `batches` counts the batches seen."""
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        side = min(self.block_size, height, width)
        rows, columns = height - side + 1, width - side + 1
        ramp = (batches / max(self.warmup, 1)).clamp(max=1)
        gamma = self.rate * ramp / side**2 * (height * width) / (rows * columns)
        seeds = (torch.rand(*x.shape[:2], rows, columns, device=x.device) < gamma).to(x.dtype)
        dropped = F.max_pool2d(F.pad(seeds, (side - 1,) * 4), side, stride=1)  # [B, C, h, w]
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum().clamp_min(1))
