"""The one preparation of images a backbone asks for, the same for support, query and unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fewshot.core.errors import FewshotError

# ITU-R BT.601 luma, the weights PIL and torchvision use for greyscale.
LUMA = (0.299, 0.587, 0.114)
# Channel statistics of ImageNet, the customary normalisation of photographs.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTransform:
    """Images [..., C, H, W] to the floating-point input of a backbone [..., channels, H', W'].

    In this order: to float in [0, 1] (uint8 becomes float32 divided by 255, floating images must lie there already);
    greyscale is repeated to 3 channels, or colour reduced to 1 by luma; resized to `size` x `size`; (x - mean) / std.

    channels        1 or 3, what the backbone takes
    size            side in pixels after resizing, or None to keep the images' size. The aspect ratio is not kept:
                    data sets deliver square images, cropped as their protocol says
    mean, std       one value per channel
    interpolation   "bilinear" or "bicubic", both antialiased; overshoot of the latter is clipped to [0, 1]

    Differentiable for floating images; the input is not modified. Raises FewshotError for other shapes, dtypes and
    for floating images outside [0, 1].
    """

    channels: int = 3
    size: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(map(float, getattr(self, name)))
            if len(values) not in (1, self.channels):
                raise FewshotError(f"{name}={values} has {len(values)} values for {self.channels} channels")
            object.__setattr__(self, name, values * (self.channels // len(values)))
        if min(self.std) <= 0:
            raise FewshotError(f"std={self.std}; it must be positive")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise FewshotError(f"interpolation={self.interpolation!r}; choose bilinear or bicubic")

    @property
    def spec(self) -> dict:
        """Everything that decides the result, as plain JSON values, for provenance."""
        return {"channels": self.channels, "size": self.size, "mean": list(self.mean), "std": list(self.std),
                "interpolation": f"{self.interpolation}, antialiased", "range": "[0, 1]",
                "channel_adaption": "1 to 3 repeats, 3 to 1 by BT.601 luma"}

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim < 3 or images.shape[-3] not in (1, 3):
            raise FewshotError(f"images have shape {tuple(images.shape)}; expected [..., C, H, W] with C = 1 or 3")
        leading = images.shape[:-3]
        x = self._to_unit_range(images).reshape(-1, *images.shape[-3:])  # [B, C, H, W]
        x = self._adapt_channels(x)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode=self.interpolation, antialias=True)
            x = x.clamp(0, 1)
        if set(self.mean) != {0.0} or set(self.std) != {1.0}:
            mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
            x = (x - mean) / std
        return x.reshape(*leading, *x.shape[1:])

    def _to_unit_range(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            return images.to(torch.float32) / 255
        if not images.is_floating_point():
            raise FewshotError(f"images have dtype {images.dtype}; pass uint8 in 0..255 or floating point in [0, 1]")
        if images.numel():
            low, high = (float(v) for v in images.detach().aminmax())
            # Written so that NaN fails, too; the slack is for images that were interpolated in floating point.
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise FewshotError(f"floating images span [{low:g}, {high:g}]; they must lie in [0, 1] (divide by 255, "
                                   "and leave mean and std to the transform)")
        return images

    def _adapt_channels(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.channels:
            return x
        if self.channels == 3:
            return x.expand(-1, 3, -1, -1)
        luma = torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(3, 1, 1)
        return (x * luma).sum(1, keepdim=True)


def photograph_transform(channels: int, size: int | None) -> ImageTransform:
    """For networks trained here: colour normalised by ImageNet's statistics, greyscale left in [0, 1]."""
    return ImageTransform(1, size) if channels == 1 else ImageTransform(channels, size, IMAGENET_MEAN, IMAGENET_STD)
