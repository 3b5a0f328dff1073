"""ResNet-18 with the stem for small images."""

from __future__ import annotations

from torch import Tensor, nn

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.transform import photograph_transform
from fewshot.core.errors import FewshotError


@BACKBONES.register("resnet18")
class ResNet18(Backbone):
    """torchvision's ResNet-18 without classifier, D = 512.

    image_size   default None: images keep their size
    stem         "small": a 3x3 convolution of stride 1 and no max-pooling, as SimpleShot, LaplacianShot and TIM train
                 it at 84 pixels (map 11 x 11); "imagenet": the original 7x7 stride-2 stem, as Chen et al. 2019 at 224

    Source: He et al. 2016, arXiv:1512.03385; mileyan/simple_shot for the stem.
    """

    at_defaults = 512, None

    def __init__(self, channels: int, image_size: int | None, *, stem: str = "small"):
        super().__init__(512, photograph_transform(channels, image_size))
        if stem not in ("small", "imagenet"):
            raise FewshotError(f"stem={stem!r}; choose 'small' or 'imagenet'")
        from torchvision.models import resnet18

        net = resnet18()
        kernel, stride, padding = (3, 1, 1) if stem == "small" else (7, 2, 3)
        conv = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        pool = nn.Identity() if stem == "small" else net.maxpool
        self.stem = nn.Sequential(conv, net.bn1, nn.ReLU(), pool)
        self.layers = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def spatial(self, x: Tensor) -> Tensor:
        return self.layers(self.stem(x))  # [B, 512, h, w]

    def stages(self) -> list[nn.Module]:
        return list(self.layers)
