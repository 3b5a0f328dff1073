"""What several recipes do to a batch: mixing images with each other at some depth of the network, and rotating them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.errors import FewshotError
from fewshot.training.objectives import head_logits

PLACES = 4  # the images, and the outputs of the first three stages


class ManifoldMixup:
    """Manifold mixup (Verma et al. 2019, arXiv:1806.05236, eq. 1): at a random one of PLACES depths every image's map h is
    mixed with that of another image, lambda h + (1 - lambda) h', lambda ~ Beta(alpha, alpha), one lambda and one depth
    for the batch.

    The depths are those of nupurkmr9/S2M2_fewshot and ybendou/easy, counted in `Backbone.stages`.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha

    def loss(self, backbone: Backbone, head: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator,
             label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """(lambda CE(y) + (1 - lambda) CE(y'), logits [B, classes] of the mixed images)."""
        order = torch.randperm(len(images), generator=generator).to(images.device)
        share, place = beta(self.alpha, generator), int(torch.randint(PLACES, (1,), generator=generator))
        logits = head_logits(head, mixed_features(backbone, images, order, share, place))
        own, other = (F.cross_entropy(logits, y, label_smoothing=label_smoothing) for y in (labels, labels[order]))
        return share * own + (1 - share) * other, logits


def mixed_features(backbone: Backbone, images: Tensor, order: Tensor, share: float, place: int) -> Tensor:
    """Features [B, D] with images (place 0) or the output of stage `place` mixed: share x + (1 - share) x[order]."""
    def mix(x: Tensor) -> Tensor:
        return share * x + (1 - share) * x[order]

    if place == 0:
        return backbone(mix(images))
    handle = backbone.stages()[place - 1].register_forward_hook(lambda _module, _inputs, output: mix(output))
    try:
        return backbone.forward(images)  # a compiled call would not see the hook
    finally:
        handle.remove()


def need_stages(backbone: Backbone) -> None:
    """Raise FewshotError for a backbone whose maps cannot be mixed."""
    if len(backbone.stages()) < PLACES - 1:
        raise FewshotError(f"{backbone.name} has {len(backbone.stages())} stages; mixing needs at least {PLACES - 1}")


def beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha). PyTorch's own takes no generator."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return float(np.random.Generator(np.random.Philox(seed)).beta(alpha, alpha))


def rotated(images: Tensor, quarters: int) -> Tensor:
    """Images [B, C, H, H] turned counter-clockwise by `quarters` of 90 degrees."""
    if images.shape[2] != images.shape[3]:
        raise FewshotError(f"images of {images.shape[2]} x {images.shape[3]} pixels cannot be turned by 90 degrees; create "
                           "the backbone with an image_size, which makes them square")
    return torch.rot90(images, quarters, (2, 3))
