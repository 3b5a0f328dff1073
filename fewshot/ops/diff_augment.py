"""Differentiable augmentation of transformed images, as P>M>F uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.core.seeding import derived_seed


def diff_augment(pixels: Tensor, seed: int, step: int, probability: float = 0.9, shift: float = 0.125) -> Tensor:
    """Images [B, C, H, W] mirrored, with other colours and moved: a pure function of (seed, step) and of the position of
    an image in the batch. With 1 - `probability` they are returned as they are.

    The whole batch is mirrored with probability 1/2. Then for each image: + U(-1/2, 1/2); the deviation from its grey
    image times U(0, 2); that from its mean times U(1/2, 3/2); moved by up to `shift` of its size, with zeros where
    nothing was. In units of the transformed images, as in the official code.

    Source: hushell/pmf_cvpr22 (types color and translation), after Zhao et al. 2020, arXiv:2006.10738.
    """
    generator = torch.Generator().manual_seed(derived_seed("diff_augment", seed, step))
    coins = torch.rand(2, generator=generator, dtype=torch.float64)
    draws = torch.rand(len(pixels), 5, generator=generator, dtype=torch.float64).to(pixels.device)
    if coins[0] >= probability:
        return pixels
    brightness, saturation, contrast = draws[:, :3].to(pixels.dtype)[:, :, None, None, None].unbind(1)  # [B, 1, 1, 1]
    x = pixels.flip(3) if coins[1] < 0.5 else pixels
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (contrast + 0.5)
    return _moved(x, draws[:, 3:], shift)


def _moved(x: Tensor, draws: Tensor, shift: float) -> Tensor:
    B, _, height, width = x.shape
    places, inside = [], []
    for axis, size in enumerate((height, width)):
        most = int(size * shift + 0.5)
        offset = (draws[:, axis] * (2 * most + 1)).long() - most  # -most .. most
        place = torch.arange(size, device=x.device) + offset.unsqueeze(1)  # [B, size]
        inside.append((place >= 0) & (place < size))
        places.append(place.clamp(0, size - 1))
    rows, columns = places[0][:, :, None], places[1][:, None, :]
    image = torch.arange(B, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)  # [B, C, H, W]
    return moved * (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1).to(x.dtype)
