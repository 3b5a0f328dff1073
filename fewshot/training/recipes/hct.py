"""Hybrid consistency training; a reconstruction, not the authors' method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.backbones import Backbone
from fewshot.core.checked import check_number
from fewshot.training.config import SupervisedConfig
from fewshot.training.mixing import ManifoldMixup, need_stages
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits, make_head


@OBJECTIVES.register("hct")
class HCT(Objective):
    """Reconstruction from the abstract of the paper, which has no public code: that interpolation of hidden features and
    consistency between weak and strong augmentations are trained together is taken from there, the losses and all
    constants are this project's. Its results are not results of HCT. With x_w and x_s the two views of an image:

        L_mm(x_w) + consistency KL(p(x_w) || p(x_s)),

    L_mm the loss of `ManifoldMixup`; p(x_w), the softmax of the logits, carries no gradient. The accuracy shown is that of
    the weak view.

    Source: after Ye et al. 2020, arXiv:2011.10082. `hct_adapt` is its counterpart at test time.
    """

    views = 2
    defaults = {"head": "cosine",
                "augmentation": "crop(4),flip | resized_crop(0.2),color_jitter(0.4,hue=0.1,p=0.8),greyscale(0.2),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, alpha: float = 2.0,
                 consistency: float = 1.0):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.mixup = ManifoldMixup(check_number("alpha", alpha, 1e-3))
        self.consistency = check_number("consistency", consistency, 0)
        self.head = make_head(config.head, feature_dim, classes)

    def extra_repr(self) -> str:
        return f"alpha={self.mixup.alpha}, consistency={self.consistency}, label_smoothing={self.label_smoothing}"

    def attach(self, backbone: Backbone) -> None:
        need_stages(backbone)

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mixed, _ = self.mixup.loss(backbone, self.head, images[:len(labels)], labels, generator, self.label_smoothing)
        weak, strong = head_logits(self.head, backbone(images)).chunk(2)  # [B, classes] each
        divergence = F.kl_div(strong.log_softmax(1), weak.detach().log_softmax(1), log_target=True, reduction="batchmean")
        return mixed + self.consistency * divergence, weak
