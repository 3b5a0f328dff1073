"""No network at all: the baseline every learned feature must beat."""

from __future__ import annotations

from torch import Tensor

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import ImageTransform


@BACKBONES.register("pixels")
class Pixels(Backbone):
    """Flattened pixels in [0, 1]: D = channels image_size^2.

    image_size   default 28
    """

    weights = ("none",)
    at_defaults = 2352, 28

    def __init__(self, channels: int, image_size: int | None):
        size = 28 if image_size is None else image_size
        super().__init__(channels * size**2, ImageTransform(channels, size))

    def spatial(self, x: Tensor) -> Tensor:
        return x  # [B, C, H, W]

    def pool(self, x: Tensor) -> Tensor:
        return x.flatten(1)  # [B, C H W]
