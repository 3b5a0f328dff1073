"""Features that are flattened maps [C, h, w], channels first, as `conv4` makes them."""

from __future__ import annotations

import math

from torch import Tensor

from fewshot.core.errors import FewshotError


def descriptors(features: Tensor, channels: int) -> Tensor:
    """[E, B, C h w] -> one descriptor per position [E, B, h w, C]; raises FewshotError where C does not divide."""
    if features.shape[-1] % channels:
        raise FewshotError(f"features of length {features.shape[-1]} are no maps of channels={channels}; give the number of "
                           "channels of the backbone's last map (it must divide the length)")
    return features.unflatten(-1, (channels, -1)).transpose(-1, -2)


def map_side(length: int, channels: int) -> int:
    """h = w of square maps of `channels` whose flattened length is `length`; raises FewshotError where there are none."""
    side = math.isqrt(length // channels)
    if channels * side * side != length:
        raise FewshotError(f"features of length {length} are no square maps of channels={channels}; give the number of "
                           "channels of the backbone's last map, e.g. of conv4 with pools=2")
    return side
