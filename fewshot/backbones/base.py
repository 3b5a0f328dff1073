"""What a backbone is, and the table of them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.backbones.transform import ImageTransform
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.core.registry import Registry, unknown_message

PRECISIONS = ("float32", "bfloat16")  # of the arithmetic in a backbone

BACKBONES: Registry[type[Backbone]] = Registry("backbone", "fewshot.backbones")
REDUCTIONS = {"average": lambda x: x.mean((2, 3)), "max": lambda x: x.amax((2, 3)), "flatten": lambda x: x.flatten(1)}


class Backbone(nn.Module):
    """A network from images to feature vectors. A subclass is registered with `@BACKBONES.register("name")`, takes
    `(channels, image_size)` and its own keywords, and defines `spatial(x)` or, without a spatial map, `forward`.

    name, options   registry name and keywords, defaults written out; `seed` made the random weights
    feature_dim     D
    input_size      side H = W the network takes, or None for any (of at least `smallest`)
    transform       ImageTransform from stored images to the network's input
    pretrained_on   None or e.g. "ImageNet-1k": what the weights had seen before any training here
    seen            what data trained the weights here or chose among them, see `fewshot.backbones.seen`
    batch_norm      what BatchNorm uses in eval mode: "running" statistics, so that no image influences another's
                    features, or those of the "batch". In train mode it always uses and records those of the batch
    reduce          None: features as the network makes them. Else its last map [C', h, w], reduced to D = C' by "average"
                    or "max", or kept whole by "flatten", D = C' h w (channels first, as DN4 takes them); set by `reduce_by`

    Of the class: `weights` lists the named weights, the default first, or is ("none",) where there are none to load;
    `default_pretrained_on` says what the default ones have seen; `own_input` is True where size and channels of the
    input belong to the network rather than to the images; `at_defaults` is (feature_dim, input_size), which
    `fewshot list` shows without building the network.
    """

    weights: ClassVar[tuple[str, ...]] = ("random",)
    default_pretrained_on: ClassVar[str | None] = None
    own_input: ClassVar[bool] = False
    smallest: ClassVar[int] = 1
    at_defaults: ClassVar[tuple[int | str, int | None]] = "?", None

    def __init__(self, feature_dim: int, transform: ImageTransform, pretrained_on: str | None = None):
        super().__init__()
        if transform.size is not None and transform.size < self.smallest:
            raise FewshotError(f"image_size={transform.size}; this backbone needs at least {self.smallest} pixels")
        self.feature_dim = feature_dim
        self.transform = transform
        self.pretrained_on = pretrained_on
        self.name = type(self).__name__
        self.options: dict = {}
        self.seen: list[dict] = []
        self.seed: int | None = None
        self.random_sha256: str | None = None
        self.reduce: str | None = None
        self.batch_norm = "running"

    @property
    def input_size(self) -> int | None:
        return self.transform.size

    @property
    def batch_norm(self) -> str:
        return self._batch_norm

    @batch_norm.setter
    def batch_norm(self, mode: str) -> None:
        if mode not in ("running", "batch"):
            raise FewshotError(f"batch_norm={mode!r}; choose 'running' or 'batch'")
        self._batch_norm = mode
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module.train, and sets the BatchNorm layers as `batch_norm` says."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, _BatchNorm):
                # A training layer that does not track takes the batch's statistics and leaves the running ones alone.
                layer.track_running_stats = mode or self.batch_norm == "running"
                layer.training = mode or self.batch_norm == "batch"
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Transformed images [B, C, H, W] -> features [B, D]."""
        x = self.forward_map(images)
        return self.pool(x) if self.reduce is None else REDUCTIONS[self.reduce](x)

    def reduce_by(self, how: str) -> None:
        """Make the features of the last map, see `reduce`; sets `feature_dim`. Raises FewshotError for another name, where
        there is no map, and for "flatten" where images of any size are taken."""
        if how not in REDUCTIONS:
            raise FewshotError(unknown_message("reduction", how, list(REDUCTIONS)))
        if how == "flatten" and self.input_size is None:
            raise FewshotError("reduce='flatten' makes features as long as the map is large; give the backbone an "
                               "image_size")
        self.reduce = how
        self.feature_dim = math.prod(self.map_shape()) if how == "flatten" else self.map_shape()[0]

    def map_shape(self) -> tuple[int, int, int]:
        """(C', h, w) of the last map, for images of 64 pixels where any size is taken. Nothing is computed."""
        side = self.input_size or max(64, self.smallest)
        images = torch.empty(1, self.transform.channels, side, side, device="meta")
        state = {name: value.to("meta") for name, value in self.state_dict().items()}
        return tuple(functional_call(_Map(self), {f"backbone.{name}": x for name, x in state.items()}, images).shape[1:])

    def forward_map(self, images: Tensor) -> Tensor:
        """Transformed images [B, C, H, W] -> last map [B, C', h, w]; raises FewshotError where there is none."""
        return self.spatial(self.check(images))

    def spatial(self, x: Tensor) -> Tensor:
        raise FewshotError(f"{self.name} has no spatial map; choose a convolutional backbone such as conv4 or resnet12")

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))  # [B, D]

    def stages(self) -> list[nn.Module]:
        """The modules whose outputs are the successive maps between input and features, for objectives that change them
        on their way; raises FewshotError where they are not known."""
        raise FewshotError(f"the stages of {self.name} are not known; choose conv4, resnet12, resnet18 or wrn28_10")

    def classifier(self) -> tuple[Tensor, Tensor] | None:
        """(weight [K, D], bias [K]) of the classifier on the features that came with the weights, on the CPU; None where
        there is none. It is no part of the network: weights that were trained on here have none, either."""
        return None

    def check(self, images: Tensor) -> Tensor:
        """`images`, or FewshotError if they did not pass the transform."""
        shape, side = tuple(images.shape), self.input_size
        fits = images.ndim == 4 and shape[1] == self.transform.channels and images.is_floating_point()
        if not fits or (side is not None and shape[2:] != (side, side)):
            raise FewshotError(f"{self.name} got {images.dtype} {shape}; it takes floating "
                               f"point [B, {self.transform.channels}, {side or 'H'}, {side or 'W'}]: apply "
                               "backbone.transform first")
        if min(shape[2:]) < self.smallest:
            raise FewshotError(f"{self.name} got images of {shape[2]} x {shape[3]} pixels and needs at least "
                               f"{self.smallest}: create it with image_size={self.smallest} or more to resize them")
        return images

    @property
    def weights_id(self) -> str:
        """"none" without weights, "random:<seed>" while they are those of a fresh network, else the sha256 of the state
        dict as it is now: features of a network that was trained further cannot pass for those of the untrained one."""
        return self._weights_id(state_sha256(self.state_dict()))

    def _weights_id(self, sha256: str) -> str:
        if self.weights == ("none",):
            return "none"
        return f"random:{self.seed}" if sha256 == self.random_sha256 else sha256

    def describe(self) -> dict:
        """What the features depend on besides the images, as plain JSON values."""
        sha256 = state_sha256(self.state_dict())
        described: dict = {"backbone": self.name, "options": self.options, "weights_id": self._weights_id(sha256),
                     "weights_sha256": sha256, "pretrained_on": self.pretrained_on, "transform": self.transform.spec,
                     "batch_norm": self.batch_norm}
        if self.reduce == "flatten":
            described["map"] = list(self.map_shape())
        return described


class _Map(nn.Module):
    """A backbone whose forward pass is its map."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.forward_map(images)
