"""NSAE: a supervised autoencoder whose reconstructions are classified, too."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits, make_head


@OBJECTIVES.register("nsae")
class NSAE(Objective):
    """CE(y, C(z(x))) + reconstruction |x - x^|^2 + classification CE(y, C(z(x^))), x^ = decoder(z(x)) (eqs. 1 and 2): the
    reconstruction is the noisy image that gives the method its name; no other noise is added.

    reconstruction, classification   weights of the last two losses (lambda_1 and lambda_2)

    Source: Liang et al. 2021, arXiv:2108.05028, after a re-implementation by others; the authors published no code. Here
    the squared error is the mean over pixels in [0, 1] before the backbone's normalisation, the gradient of the third loss
    reaches the decoder, and x and x^ pass the network one after the other, so that BatchNorm sees them apart. Settings of
    the optimiser are this project's. The fine-tuning in two steps on the target classes is not part of the training.
    """

    defaults = {"augmentation": "resized_crop(0.2),color_jitter(0.4),flip"}
    mean: Tensor
    std: Tensor

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, reconstruction: float = 1.0,
                 classification: float = 1.0):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.reconstruction = check_number("reconstruction", reconstruction, 0)
        self.classification = check_number("classification", classification, 0)
        self.head = make_head(config.head, feature_dim, classes)
        self.decoder: nn.Module | None = None

    def extra_repr(self) -> str:
        return (f"reconstruction={self.reconstruction}, classification={self.classification}, "
                f"label_smoothing={self.label_smoothing}")

    def attach(self, backbone: Backbone) -> None:
        transform = backbone.transform
        if transform.size is None:
            raise FewshotError(f"{backbone.name} takes images of any size, and the decoder needs to know it; create the "
                               "backbone with an image_size")
        self.decoder = Decoder(backbone.feature_dim, transform.channels, transform.size)
        self.register_buffer("mean", torch.tensor(transform.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(-1, 1, 1), persistent=False)

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.decoder is not None, "attached"
        features = backbone(images)
        rebuilt = self.decoder(features).to(images.dtype)  # [B, C, H, W] in [0, 1]
        logits = head_logits(self.head, features)
        noisy = head_logits(self.head, backbone((rebuilt - self.mean) / self.std))
        own, other = (F.cross_entropy(x, labels, label_smoothing=self.label_smoothing) for x in (logits, noisy))
        error = F.mse_loss(rebuilt, images * self.std + self.mean)
        return own + self.reconstruction * error + self.classification * other, logits


class Decoder(nn.Module):
    """Features [B, D] -> images [B, C, size, size] in [0, 1]: two linear layers (512 and 32 s^2 wide), four transposed
    convolutions of stride 2 (32, 32, 64, 64 channels) from a map of side s = ceil(size / 16), a 3x3 convolution and a
    sigmoid; what exceeds the size is cut off. At 224 pixels (s = 14) these are the published layers."""

    def __init__(self, feature_dim: int, channels: int, size: int):
        super().__init__()
        self.side, self.size = math.ceil(size / 16), size
        self.linear = nn.Sequential(nn.Linear(feature_dim, 512), nn.ReLU(), nn.Linear(512, 32 * self.side**2), nn.ReLU())
        layers: list[nn.Module] = []
        for inputs, outputs in ((32, 32), (32, 32), (32, 64), (64, 64)):
            layers += [nn.ConvTranspose2d(inputs, outputs, 2, stride=2), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.maps = nn.Sequential(*layers, nn.Conv2d(64, channels, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        maps = self.maps(self.linear(features).view(-1, 32, self.side, self.side))
        first = (maps.shape[-1] - self.size) // 2
        return maps[..., first:first + self.size, first:first + self.size].sigmoid()
