"""Any model of timm as a backbone, under the name "timm/<model>"; those of others as "timm/hf-hub:<owner>/<name>"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewshot.backbones.base import Backbone
from fewshot.backbones.transform import ImageTransform
from fewshot.core.errors import FewshotError


class TimmBackbone(Backbone):
    """`timm.create_model(model, num_classes=0)`; mean, std, interpolation and input size are the model's own.

    image_size   default: the size the model was made for. Models of fixed size (vision transformers) are built for it
    weights      "random", or "pretrained" to let timm fetch its weights
    options      passed to `timm.create_model`, e.g. drop_path_rate

    A model that returns a map or tokens instead of a vector (global_pool="", encoders made for detection) has them averaged
    over all positions. What it returns, and whether it takes images of this size, is found by running it once.

    Deviation from timm's evaluation: images are resized to the whole input, not enlarged and centre-cropped.
    """

    weights = ("random", "pretrained")
    own_input = True

    def __init__(self, channels: int, image_size: int | None, model: str, weights: str = "random",
                 **options: Any):
        import timm

        pretrained = weights == "pretrained"
        try:
            chosen = image_size is not None and not model.startswith("hf-hub:")
            if chosen and timm.get_pretrained_cfg_value(model, "fixed_input_size"):
                options = {"img_size": image_size, **options}
            net: Any = timm.create_model(model, pretrained=pretrained, num_classes=0, in_chans=channels, **options)
        except Exception as error:  # each of its models checks in its own way
            raise FewshotError(f"timm cannot make {model!r} with {channels} channels, {options}: "
                               f"{error or type(error).__name__}") from error
        config = timm.data.resolve_data_config(model=net)
        mean, std = (tuple(config[key]) if channels == len(config[key]) else (sum(config[key]) / len(config[key]),)
                     for key in ("mean", "std"))
        # timm names more filters than an antialiased resize of tensors offers; bicubic is the nearest to those.
        filter_name = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        transform = ImageTransform(channels, image_size or config["input_size"][-1], mean, std, filter_name)
        seen = seen_data(net.pretrained_cfg.get("tag")) if pretrained else None
        super().__init__(_vector_length(model, net.eval(), transform, config["input_size"][-1]), transform, seen)
        self.net = net
        self._again = {"model_name": model, "pretrained": True, "in_chans": channels, **options} if pretrained else None

    def classifier(self) -> tuple[Tensor, Tensor] | None:
        """Of the weights that timm fetches, read once more; None where the model does not end in a linear classifier."""
        import timm

        if self._again is None:
            return None
        net: Any = timm.create_model(**self._again)
        head = net.get_classifier()
        if not isinstance(head, torch.nn.Linear):
            return None
        weight = head.weight.detach()
        return weight, weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()

    def forward(self, images: Tensor) -> Tensor:
        return _vectors(self.net, self.check(images)) if self.reduce is None else super().forward(images)  # [B, D]

    def spatial(self, x: Tensor) -> Tensor:
        x = self.net.forward_features(x)
        if x.ndim == 4:
            return x if x.shape[1] == self.net.num_features else x.permute(0, 3, 1, 2)  # [B, C', h, w]
        grid = getattr(getattr(self.net, "patch_embed", None), "grid_size", None)
        if x.ndim != 3 or grid is None:
            return super().spatial(x)
        patches = x[:, getattr(self.net, "num_prefix_tokens", 0):]
        return patches.transpose(1, 2).unflatten(2, grid)  # [B, C', h, w]


def _vectors(net: Any, images: Tensor) -> Tensor:
    """[B, D] of what a model returns."""
    x = net(images)
    if not isinstance(x, Tensor) or x.ndim not in (2, 3, 4):
        kind = f"{x.ndim} axes" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise FewshotError(f"this model of timm returns {kind}, not a vector, tokens or a map; choose another, or leave out "
                           "the option that makes it so (features_only)")
    if x.ndim == 2:
        return x
    return x.mean((2, 3)) if x.ndim == 4 and x.shape[1] == net.num_features else x.flatten(1, -2).mean(1)


def _vector_length(model: str, net: Any, transform: ImageTransform, own_size: int) -> int:
    """D, or FewshotError where the model does not take images of this size."""
    try:
        side = own_size if transform.size is None else transform.size
        with torch.inference_mode():
            return _vectors(net, torch.zeros(1, transform.channels, side, side)).shape[1]
    except FewshotError:
        raise
    except Exception as error:
        raise FewshotError(f"timm/{model} cannot take images of {transform.size} x {transform.size} pixels ({error}); leave "
                           f"out image_size to have them resized to its own {own_size}, or give another size") from error


def seen_data(tag: str | None) -> str:
    """The data behind a timm tag: ImageNet-1k where it says so alone, else the tag itself."""
    parts = (tag or "unknown").split("_")
    return "ImageNet-1k" if parts[-1] == "in1k" and "ft" not in parts and "dist" not in parts else "_".join(parts)
