"""Interval arithmetic through the layers of small networks: sound bounds of every activation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.errors import FewshotError

_MONOTONE = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity)


@dataclass(frozen=True, eq=False)
class Interval:
    """lower <= nominal <= upper, elementwise, all [B, ...]."""

    lower: Tensor
    nominal: Tensor
    upper: Tensor

    @classmethod
    def around(cls, x: Tensor, epsilon: float) -> Interval:
        """x - epsilon, x, x + epsilon."""
        return cls(x - epsilon, x, x + epsilon)

    def __getitem__(self, which: int | slice | Tensor) -> Interval:
        return Interval(self.lower[which], self.nominal[which], self.upper[which])

    def interpolate(self, mix: Tensor) -> Tensor:
        """Item b of mix [B] in [-1, 1] moves the nominal value that share of the way to the upper bound, or to the lower
        one where it is negative; -> [B, ...]."""
        mix = mix.to(self.nominal).view(-1, *[1] * (self.nominal.ndim - 1))
        return (1 - mix.abs()) * self.nominal + mix.clamp_min(0) * self.upper - mix.clamp_max(0) * self.lower

    def distances(self) -> Tensor:
        """Mean squared distance of each item's nominal value to its (upper, lower) bound [B, 2]."""
        half = self.nominal.dtype.itemsize < 4  # squares of bfloat16 lose what distinguishes them
        nominal, *bounds = (x.float() if half else x for x in (self.nominal, self.upper, self.lower))
        return torch.stack([(bound - nominal).square().flatten(1).mean(1) for bound in bounds], 1)


def propagate(layer: nn.Module, x: Interval, name: str = "") -> Interval:
    """What `layer` makes of x: bounds that hold for every input between those of x, and the nominal output.

    Convolutions and linear layers map the centre as usual and the radius by the absolute weights, which is exact for one
    layer; a sequence of layers gives bounds that hold and need not be reached. BatchNorm scales and shifts by the
    statistics that it uses for the nominal values (and records these alone), so the bounds hold for inputs that are
    normalised by the same statistics. ReLU, max-pooling, Flatten and Identity act on the three values alike.

    Raises FewshotError, naming the layer, for any other kind; `name` is what it is called in the message.
    """
    if isinstance(layer, nn.Sequential):
        for key, child in layer.named_children():
            x = propagate(child, x, f"{name}.{key}".lstrip("."))
        return x
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        return _affine(x, layer.weight, layer.bias, lambda z, weight, bias: F.conv2d(
            z, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups))
    if isinstance(layer, nn.Linear):
        return _affine(x, layer.weight, layer.bias, F.linear)
    if isinstance(layer, _BatchNorm):
        return _batch_norm(layer, x)
    if isinstance(layer, _MONOTONE):
        # One call: the three go through the same kernel.
        return Interval(*layer(torch.cat([x.lower, x.nominal, x.upper])).chunk(3))
    kinds = ", ".join(kind.__name__ for kind in (nn.Sequential, nn.Conv2d, nn.Linear, nn.BatchNorm2d, *_MONOTONE))
    raise FewshotError(f"no interval bounds through layer {name or 'given'} ({layer}); they go through {kinds} "
                       "(convolutions with padding_mode='zeros')")


def _affine(x: Interval, weight: Tensor, bias: Tensor | None, function: Callable) -> Interval:
    nominal, centre = function(torch.cat([x.nominal, (x.lower + x.upper) / 2]), weight, bias).chunk(2)
    radius = function((x.upper - x.lower) / 2, weight.abs(), None)
    return Interval(centre - radius, nominal, centre + radius)


def _batch_norm(layer: _BatchNorm, x: Interval) -> Interval:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        over = [axis for axis in range(x.nominal.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.nominal, over, correction=0)
    else:
        variance, mean = layer.running_var, layer.running_mean
    scale = (variance + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight
    shape = (-1, *[1] * (x.nominal.ndim - 2))
    scale, mean = scale.view(shape), mean.view(shape)
    shift = -mean * scale if layer.bias is None else layer.bias.view(shape) - mean * scale
    centre, radius = scale * (x.lower + x.upper) / 2 + shift, scale.abs() * (x.upper - x.lower) / 2
    return Interval(centre - radius, layer(x.nominal), centre + radius)


class IntervalNetwork(nn.Module):
    """`backbone` cut behind its first `blocks` blocks, through which bounds of the inputs within `epsilon` propagate.

    Its layers are the backbone's and have the same names, so it can take the backbone's place wherever weights are given
    by name. Called, it returns the `Interval.distances` [B, 2] of images [B, C, H, W] at the cut.

    Raises FewshotError for a backbone that is not one sequence `blocks`, as Conv-4 is, and a number of blocks it lacks.
    """

    def __init__(self, backbone: nn.Module, blocks: int, epsilon: float):
        super().__init__()
        if [name for name, _ in backbone.named_children()] != ["blocks"] or not isinstance(backbone.blocks, nn.Sequential):
            raise FewshotError(f"{getattr(backbone, 'name', type(backbone).__name__)} is not a plain sequence of blocks, so "
                               "interval bounds cannot go through it; choose conv4")
        if not 1 <= blocks <= len(backbone.blocks):
            raise FewshotError(f"blocks={blocks}; the backbone has {len(backbone.blocks)}: choose 1 to "
                               f"{len(backbone.blocks)}")
        self.blocks, self.cut, self.epsilon = backbone.blocks, blocks, epsilon
        self.pool = cast(Callable[[Tensor], Tensor], backbone.pool)  # a method, which nn.Module does not know of

    def bounds(self, images: Tensor) -> Interval:
        """The interval [B, C', h, w] at the cut for all inputs within epsilon of images [B, C, H, W]."""
        x = Interval.around(images, self.epsilon)
        for number, block in enumerate(itertools.islice(self.blocks, self.cut)):
            x = propagate(block, x, f"blocks.{number}")
        return x

    def finish(self, maps: Tensor) -> Tensor:
        """Features [B, D] of maps [B, C', h, w] at the cut."""
        for block in itertools.islice(self.blocks, self.cut, None):
            maps = block(maps)
        return self.pool(maps)

    def forward(self, images: Tensor) -> Tensor:
        return self.bounds(images).distances()


class TwinNetwork(IntervalNetwork):
    """Features [2B, D] of images [B, C + 1, H, W]: those of the images, then those of their artificial twins, which are
    interpolated at the cut. The last channel holds each image's `mix` (see `Interval.interpolate`), because the images
    are all that reaches a network. Behind the cut, BatchNorm in training takes its statistics over both halves."""

    def forward(self, images: Tensor) -> Tensor:
        found = self.bounds(images[:, :-1])
        return self.finish(torch.cat([found.nominal, found.interpolate(images[:, -1, 0, 0])]))


def with_mix(images: Tensor, mix: Tensor) -> Tensor:
    """Images [..., C, H, W] and mix [...] as `TwinNetwork` takes them: [..., C + 1, H, W]."""
    plane = mix.to(images).view(*mix.shape, 1, 1, 1).expand(*mix.shape, 1, *images.shape[-2:])
    return torch.cat([images, plane], dim=-3)
