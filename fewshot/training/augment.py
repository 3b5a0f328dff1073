"""Augmentation of stored images: a pure function of the pixels and of numbers that belong to (seed, epoch, image)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.rng import derived_seed


class Augment(Protocol):
    """`draws` is how many random numbers an image takes; `repr` must tell the settings, as it identifies a run."""

    draws: int

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """uint8 [B, C, H, W] and draws [B, draws] in [0, 1) -> images of the same shape; uint8, or floating in [0, 1]."""


@dataclass(frozen=True)
class CropFlip:
    """Crop at random from the image with `padding` black pixels around, then mirror it with probability 1/2."""

    padding: int
    flip: bool

    draws = 3

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        offsets = (draws[:, :2] * (2 * self.padding + 1)).long()  # 0 .. 2 padding
        rows = offsets[:, :1] + torch.arange(height)  # [B, H]
        columns = offsets[:, 1:] + torch.arange(width)  # [B, W]
        if self.flip:
            columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
        padded = F.pad(images, [self.padding] * 4).permute(0, 2, 3, 1)  # [B, H', W', C]
        image = torch.arange(len(images))[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def draws_of_epoch(seed: int, epoch: int, images: int, draws: int) -> Tensor:
    """[images, draws] float64 in [0, 1)."""
    generator = np.random.Generator(np.random.Philox(derived_seed("augment", seed, epoch)))
    return torch.from_numpy(generator.random((images, draws)))
