"""Baseline++: cross-entropy over cosine similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_number
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits


class DistanceHead(nn.Module):
    """logits = scale g_c cos(z, w_c), without bias.

    scale         fixed; 0 stands for 2 with up to 200 classes and 10 with more, as in the code
    class_norms   whether the norm g_c of every class is learned, else it is 1. The paper's formula has none, but with the
                  code's scale of 2 such logits cannot tell classes apart: give a larger scale then
    """

    def __init__(self, feature_dim: int, classes: int, scale: float = 0.0, class_norms: bool = True):
        super().__init__()
        self.scale = scale or (2.0 if classes <= 200 else 10.0)
        self.weight = nn.Parameter(nn.Linear(feature_dim, classes, bias=False).weight.detach().clone())
        norms = self.weight.detach().norm(dim=1)  # [classes]
        self.norms = nn.Parameter(norms) if class_norms else None

    def extra_repr(self) -> str:
        return f"scale={self.scale}, class_norms={self.norms is not None}"

    def forward(self, features: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))  # [B, classes]
        return self.scale * (cosine if self.norms is None else cosine * self.norms)


@OBJECTIVES.register("baseline_pp")
class BaselinePP(Objective):
    """Cross-entropy of the softmax of cosine similarities between feature and class weight (`DistanceHead`, whose
    arguments are the hyper-parameters).

    Source: Chen et al. 2019, arXiv:1904.04232, section 3.2 (Baseline++); wyharveychen/CloserLookFewShot (backbone.py,
    distLinear): 400 epochs of Adam, 1e-3, batches of 16, resized crops, jitter 0.4, flips. Deviations: weights are kept
    that are best on validation episodes, where the code keeps the last; `head` of the configuration has no effect.
    """

    defaults = {"epochs": 400, "batch_size": 16, "optimiser": "adam", "lr": 1e-3, "weight_decay": 0.0,
                "schedule": "constant", "head": "cosine", "augmentation": "resized_crop,color_jitter(0.4),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, scale: float = 0.0,
                 class_norms: bool = True):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.head = DistanceHead(feature_dim, classes, check_number("scale", scale, 0), class_norms)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = head_logits(self.head, backbone(images))
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits
