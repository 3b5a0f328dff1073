"""Augmentation of stored images: a pure function of the pixels and of numbers that belong to (seed, epoch, image).

    chain = parse_augmentation("resized_crop(0.2),color_jitter(0.4),flip")
    chain(images, torch.rand(len(images), chain.draws, dtype=torch.float64))      # floating, in [0, 1]

Every image of a batch has its own parameters. The functional kernels of torchvision.transforms.v2 take one box, angle or
factor for a whole batch, so the steps are written here, with `grid_sample` and broadcasting; the tests compare them, image
by image, with those kernels.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.backbones.transform import LUMA
from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry
from fewshot.core.seeding import derived_seed
from fewshot.core.spec_text import read_steps, write_step


class Augment(Protocol):
    """`draws` is how many random numbers an image takes; `repr` must tell the settings, as it identifies a run."""

    @property
    def draws(self) -> int: ...

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """uint8 [B, C, H, W] and draws [B, draws] in [0, 1) -> images of the same shape; uint8, or floating in [0, 1]."""


class AugmentStep(abc.ABC):
    """A frozen dataclass whose fields are its arguments, registered in AUGMENTS."""

    name: ClassVar[str]
    draws: ClassVar[int]

    @abc.abstractmethod
    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Floating [B, C, H, W] in [0, 1] and float64 draws [B, draws] in [0, 1) -> images of the same shape and range."""

    def __str__(self) -> str:
        return write_step(self.name, self)


Step = TypeVar("Step", bound=AugmentStep)
AUGMENTS: Registry[type[AugmentStep]] = Registry("augmentation step")


def _register(name: str) -> Callable[[type[Step]], type[Step]]:
    def add(cls: type[Step]) -> type[Step]:
        cls.name = name
        made = dataclass(frozen=True)(cls)
        AUGMENTS.register(name)(made)
        return made

    return add


@dataclass(frozen=True)
class CropFlip:
    """Crop at random from the image with `padding` black pixels around, then mirror it with probability 1/2."""

    padding: int
    flip: bool

    draws = 3

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return _shifted(images, self.padding, draws, draws[:, 2:3] < 0.5 if self.flip else None)


@_register("crop")
class Crop(AugmentStep):
    """Crop at random from the image with `padding` black pixels around."""

    padding: int = 4

    draws = 2

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise FewshotError(f"crop(padding={self.padding}); at least 1 pixel is needed")

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return _shifted(images, self.padding, draws, None)


@_register("flip")
class Flip(AugmentStep):
    """Mirror left to right with probability 1/2."""

    draws = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where(draws.view(-1, 1, 1, 1) < 0.5, images.flip(3), images)


@_register("resized_crop")
class ResizedCrop(AugmentStep):
    """A box of between `scale` and 1 of the area and an aspect ratio of between 3/4 and 4/3 (uniform, and log-uniform),
    enlarged to the size of the image, bilinearly.

    As torchvision's RandomResizedCrop, except that the box has no whole pixels and a side that does not fit is cut to the
    image's, where torchvision draws again.
    """

    scale: float = 0.08

    draws = 4

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise FewshotError(f"resized_crop(scale={self.scale}); it must lie in (0, 1]")

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        area = self.scale + (1 - self.scale) * draws[:, 0]
        ratio = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
        zero = torch.zeros_like(width)
        # From the output's [-1, 1] to the box's place in the input's.
        theta = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1)
        return _sampled(images, theta, "border")


@_register("affine")
class Affine(AugmentStep):
    """Turn by up to `degrees`, shift by up to `translate` of the side, shrink or enlarge by up to `scale`, all uniform; what
    comes from outside is black. For drawings on black such as characters, whose mirror images are other characters."""

    degrees: float = 10.0
    translate: float = 0.1
    scale: float = 0.1

    draws = 4

    def __post_init__(self) -> None:
        if not (0 <= self.degrees <= 180 and 0 <= self.translate < 1 and 0 <= self.scale < 1):
            raise FewshotError(f"{self}; degrees must lie in [0, 180], translate and scale in [0, 1)")

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        between = 2 * draws - 1
        angle = between[:, 0] * math.radians(self.degrees)
        size = 1 / (1 + self.scale * between[:, 1])  # the map is from output to input
        cos, sin = size * angle.cos(), size * angle.sin()
        shift = 2 * self.translate * between[:, 2:]
        theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1)
        return _sampled(images, theta, "zeros")


@_register("color_jitter")
class ColorJitter(AugmentStep):
    """With probability `p`: brightness, contrast and saturation times a factor in [1 - strength, 1 + strength], hue turned
    by up to `hue` of the circle.

    As torchvision's ColorJitter, except that the order is fixed and that hue is turned about the grey axis in YIQ (a
    linear map, one matrix per image) instead of in HSV. Saturation and hue leave greyscale images alone.
    """

    strength: float = 0.4
    hue: float = 0.0
    p: float = 1.0

    draws = 5

    def __post_init__(self) -> None:
        if not (0 <= self.strength <= 1 and 0 <= self.hue <= 0.5 and 0 < self.p <= 1):
            raise FewshotError(f"{self}; strength must lie in [0, 1], hue in [0, 0.5] and p in (0, 1]")

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        draws = draws.to(images).view(-1, 5, 1, 1, 1)
        brightness, contrast, saturation = (1 + self.strength * (2 * draws[:, i] - 1) for i in range(3))
        x = (images * brightness).clamp(0, 1)
        x = blend(x, greyscale(x).mean((1, 2, 3), keepdim=True), contrast)
        if x.shape[1] == 3:
            x = blend(x, greyscale(x), saturation)
            if self.hue:
                x = turn_hue(x, (2 * draws[:, 3] - 1).view(-1) * 2 * math.pi * self.hue)
        return torch.where(draws[:, 4] < self.p, x, images)


@_register("greyscale")
class Greyscale(AugmentStep):
    """With probability `p` all colour is taken away."""

    p: float = 0.2

    draws = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where(draws.view(-1, 1, 1, 1) < self.p, greyscale(images), images)


@dataclass(frozen=True)
class Chain:
    """Steps one after the other, from stored images to floating ones in [0, 1]."""

    steps: tuple[AugmentStep, ...]

    @property
    def draws(self) -> int:
        return sum(step.draws for step in self.steps)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        x = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
        for step, numbers in zip(self.steps, draws.split([step.draws for step in self.steps], 1), strict=True):
            x = step(x, numbers)
        return x.clamp(0, 1)  # interpolation may pass the ends by a rounding error

    def __repr__(self) -> str:
        return ",".join(map(str, self.steps))


@dataclass(frozen=True)
class Views:
    """Several augmentations of every image, each with random numbers of its own: [B, C, H, W] -> [V B, C, H, W], one view
    after the other."""

    views: tuple[Augment, ...]

    @property
    def draws(self) -> int:
        return sum(view.draws for view in self.views)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        parts = draws.split([view.draws for view in self.views], 1)
        return torch.cat([view(images, numbers) for view, numbers in zip(self.views, parts, strict=True)])

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.views))


def parse_augmentation(spec: str, views: int = 1) -> Augment:
    """The augmentation written as `spec`: steps of AUGMENTS separated by commas, arguments in brackets; " | " between the
    texts of several views, of which there must be `views`, or one for all.

    Raises FewshotError for a text that does not read and for another number of views.
    """
    texts = spec.split("|")
    if len(texts) not in (1, views):
        raise FewshotError(f"augmentation={spec!r} describes {len(texts)} views, and this recipe takes {views}; write one, "
                           f"or {views} separated by |")
    chains = [Chain(tuple(read_steps(text, AUGMENTS, "augmentation", "resized_crop(0.2),flip"))) for text in texts]
    return in_views(chains[0], views) if len(chains) == 1 else Views(tuple(chains))


def in_views(augment: Augment, views: int) -> Augment:
    """`augment`, drawn anew for each of `views` views."""
    return augment if views == 1 else Views((augment,) * views)


def draws_of_epoch(seed: int, epoch: int, images: int, draws: int) -> Tensor:
    """[images, draws] float64 in [0, 1)."""
    generator = np.random.Generator(np.random.Philox(derived_seed("augment", seed, epoch)))
    return torch.from_numpy(generator.random((images, draws)))


def greyscale(images: Tensor) -> Tensor:
    """Luma in every channel."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMA).to(images).view(3, 1, 1)).sum(1, keepdim=True).expand_as(images)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor images + (1 - factor) other, cut to [0, 1]."""
    return torch.lerp(other.expand_as(images), images, factor.expand_as(images)).clamp(0, 1)


def turn_hue(images: Tensor, angles: Tensor) -> Tensor:
    """Chroma turned by angles [B] (radians) about the grey axis of YIQ, cut to [0, 1]."""
    to_yiq = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)]).to(images)
    turn = torch.zeros(len(images), 3, 3).to(images)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angles.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angles.sin(), angles.sin()
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq  # [B, 3, 3]
    return torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)


def _shifted(images: Tensor, padding: int, draws: Tensor, mirrored: Tensor | None) -> Tensor:
    height, width = images.shape[-2:]
    offsets = (draws[:, :2] * (2 * padding + 1)).long()  # 0 .. 2 padding
    rows = offsets[:, :1] + torch.arange(height)  # [B, H]
    columns = offsets[:, 1:] + torch.arange(width)  # [B, W]
    if mirrored is not None:
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)  # [B, H', W', C]
    image = torch.arange(len(images))[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _sampled(images: Tensor, theta: Tensor, outside: str) -> Tensor:
    """Bilinear samples at the affine maps theta [B, 6] of the output's coordinates, which span [-1, 1]."""
    grid = F.affine_grid(theta.view(-1, 2, 3).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
