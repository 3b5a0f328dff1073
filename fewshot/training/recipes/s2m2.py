"""S2M2: self-supervised rotations first, then manifold mixup beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_number
from fewshot.training.config import SupervisedConfig
from fewshot.training.mixing import ManifoldMixup, need_stages, rotated
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits
from fewshot.training.recipes.baseline_pp import DistanceHead


@OBJECTIVES.register("s2m2")
class S2M2(Objective):
    """Two phases of one run, S2M2_R of the paper. With every image x turned by r = 0, 90, 180, 270 degrees, first

        L_rot = 1/2 mean CE(r, R(z(x^r))) + 1/2 mean CE(y, C(z(x^r)))      (eqs. 4 and 5)

    over the whole batch, then L_mm + L_rot (eq. 6), L_mm the loss of `ManifoldMixup` (eq. 3) over the batch and L_rot over
    a random quarter of it, as the code for miniImageNet and CUB does (that for CIFAR-FS has L_mm alone). The accuracy shown
    is that of images as they are in the first phase and of mixed ones in the second, where it stays low.

    rotation_share   share of the training that is the first phase
    alpha            of the mixing

    Source: Mangla et al. 2020, arXiv:1907.12087, section 3; nupurkmr9/S2M2_fewshot (train.py and its README: for CUB 200
    epochs of rotations and 100 more, batches of 64, Adam, 1e-3; resized crops, jitter 0.4, flips; `DistanceHead`).
    Deviations: one optimiser for both phases, whose moments go on; weights are kept that are best on validation episodes;
    WideResNet's mixing after its third stage comes before its last BatchNorm, as in the code.
    """

    defaults = {"epochs": 300, "batch_size": 64, "optimiser": "adam", "lr": 1e-3, "weight_decay": 0.0,
                "schedule": "constant", "head": "cosine", "augmentation": "resized_crop,color_jitter(0.4),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, rotation_share: float = 2 / 3,
                 alpha: float = 2.0):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.rotation_share = check_number("rotation_share", rotation_share, 0, 1)
        self.mixup, self.mixing = ManifoldMixup(check_number("alpha", alpha, 1e-3)), False
        self.head = DistanceHead(feature_dim, classes)
        self.rotation_head = nn.Linear(feature_dim, 4)

    def extra_repr(self) -> str:
        return f"rotation_share={self.rotation_share}, alpha={self.mixup.alpha}, label_smoothing={self.label_smoothing}"

    def attach(self, backbone: Backbone) -> None:
        need_stages(backbone)

    def at(self, progress: float) -> None:
        self.mixing = progress >= self.rotation_share

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.mixing:
            return self._rotations(backbone, images, labels)
        mixed, logits = self.mixup.loss(backbone, self.head, images, labels, generator, self.label_smoothing)
        chosen = torch.randperm(len(images), generator=generator)[:max(1, len(images) // 4)].to(images.device)
        return mixed + self._rotations(backbone, images[chosen], labels[chosen])[0], logits

    def _rotations(self, backbone: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(L_rot, logits [B, classes] of the images that are not turned)."""
        features = backbone(torch.cat([rotated(images, r) for r in range(4)]))  # [4 B, D]
        turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
        logits = head_logits(self.head, features)
        loss = F.cross_entropy(logits, labels.repeat(4), label_smoothing=self.label_smoothing)
        return 0.5 * loss + 0.5 * F.cross_entropy(head_logits(self.rotation_head, features), turns), logits[:len(images)]
