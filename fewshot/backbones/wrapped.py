"""Any network from images to features as a backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.backbones.base import Backbone
from fewshot.backbones.transform import ImageTransform
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError


class WrappedBackbone(Backbone):
    """Any network as a backbone; made by `wrap_backbone`. made: shape of what it makes of two images."""

    made: tuple[int, ...]

    def __init__(self, module: nn.Module, transform: ImageTransform, pretrained_on: str | None):
        super().__init__(0, transform, pretrained_on)
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.module(self.check(images)))

    def spatial(self, x: Tensor) -> Tensor:
        return maps if (maps := self.module(x)).ndim == 4 else super().spatial(x)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 and self.options["pool"] == "mean" else x.flatten(1)  # [B, D]


def wrap_backbone(module: nn.Module, channels: int, image_size: int, *, batch_norm: str = "running", pool: str = "flatten",
                  mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,), pretrained_on: str | None = None,
                  name: str | None = None) -> WrappedBackbone:
    """`module`, any network from images to features, as a backbone in eval mode for `train`, `embed`, `evaluate` and
    `save_weights`. It is held, not copied, and keeps its weights. Its `feature_dim` is found by a forward pass.

    channels, image_size   of the images it takes, (x / 255 - mean) / std; others are adapted by the transform
    batch_norm             "running" or "batch", see Backbone
    pool                   of an output [B, C, h, w]: "flatten", or "mean" over h and w
    name                   in results, by default its class; to tell networks apart that repr(module) and weights do not

    Raises FewshotError where such images do not go through it, or BatchNorm keeps no running statistics to use.
    """
    name = name or type(module).__name__
    if pool not in ("flatten", "mean"):
        raise FewshotError(f"pool={pool!r}; choose 'flatten' or 'mean'")
    if batch_norm == "running" and any(layer.running_mean is None for layer in batch_norms(module)):
        raise FewshotError(f"batch_norm='running', but {name} has BatchNorm layers without running statistics; choose "
                           "batch_norm='batch' (an image's features then depend on its batch)")
    weight = next(module.parameters(), torch.empty(0))
    probe = torch.zeros(2, channels, image_size, image_size, device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad():
            features = module.eval()(probe)
    except (RuntimeError, TypeError, ValueError) as error:
        raise FewshotError(f"{name} does not take images {tuple(probe.shape)}: {error}") from error
    if not isinstance(features, Tensor) or features.ndim not in (2, 4) or len(features) != len(probe) or \
            not features.is_floating_point():
        shape = tuple(getattr(features, "shape", ()))
        tokens = "; of tokens [B, T, D] return one vector an image, such as the first or their mean" * (len(shape) == 3)
        raise FewshotError(f"{name} makes a {type(features).__name__} {shape} of images {tuple(probe.shape)}; expected "
                           f"floating point features [B, D] or a map [B, C, h, w]{tokens}")
    backbone = WrappedBackbone(module, ImageTransform(channels, image_size, mean, std), pretrained_on)
    structure = hashlib.sha256(f"{type(module).__qualname__} {module!r}".encode()).hexdigest()[:16]
    backbone.options = {"channels": channels, "image_size": image_size, "pool": pool, "structure": structure}
    backbone.name, backbone.feature_dim, backbone.batch_norm = name, backbone.pool(features).shape[1], batch_norm
    backbone.made = tuple(features.shape)
    return backbone.eval()


def as_backbone(network: nn.Module | Callable[[Tensor], Tensor], channels: int, image_size: int) -> Backbone:
    """`network` itself where it is a backbone; else, as by `wrap_backbone`, a module in its mode, or any callable, of images
    [B, C, H, W] in [0, 1] to vectors [B, D]. Raises FewshotError, as that, and where it makes maps."""
    if isinstance(plain(network), Backbone):
        return network  # type: ignore[return-value]  # compiled, it passes everything on to the backbone
    if not callable(network):
        raise FewshotError(f"{type(network).__name__} is no network; pass a backbone (create_backbone makes one), an "
                           "nn.Module or another callable from images to vectors")
    module = network if isinstance(network, nn.Module) else _Called(network)
    mode, name = module.training, getattr(network, "__name__", type(network).__name__)
    try:
        wrapped = wrap_backbone(module, channels, image_size, name=name)
    finally:
        module.train(mode)
    shape = wrapped.made
    if len(shape) == 4 and shape[2:] != (1, 1):
        raise FewshotError(f"{name} makes maps {shape} of {shape[0]} images; choose what becomes of them: "
                           "fewshot.wrap_backbone(network, channels, image_size, pool='mean'), or 'flatten'")
    if isinstance(module, _Called):
        wrapped.weights = ("none",)  # type: ignore[misc]  # none that can be seen
    return wrapped.train(mode)


class _Called(nn.Module):
    """A callable as a module without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
