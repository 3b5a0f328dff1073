"""What supervised training minimises: modules with weights of their own, one for each recipe."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.registry import Registry
from fewshot.training.config import SupervisedConfig

# name -> function of (config, number of base classes, feature_dim) that makes the objective
OBJECTIVES: Registry[Callable[[SupervisedConfig, int, int], Objective]] = Registry("recipe")


class Objective(nn.Module, abc.ABC):
    """The loss of a recipe, with the weights that are trained beside the backbone and not used afterwards.

    `repr` identifies the objective: settings that no submodule shows belong into `extra_repr`.
    """

    @abc.abstractmethod
    def loss(self, backbone: nn.Module, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(mean loss, logits [B, classes] whose accuracy is shown).

        images      [B, C, H, W], augmented and transformed, as the backbone takes them
        labels      [B] int64, 0 .. classes - 1
        generator   on the CPU, seeded by (seed, step, pass): the only source of random numbers (mixing, rotations)
        """


class CosineHead(nn.Module):
    """logits = scale cos(z, w_c) with a learned scale, 10 at first (Gidaris and Komodakis 2018, arXiv:1804.09458, eq. 5
    and section 3.1). No bias."""

    def __init__(self, feature_dim: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, feature_dim))
        self.scale = nn.Parameter(torch.tensor(10.0))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))  # [B, classes]


def make_head(kind: str, feature_dim: int, classes: int) -> nn.Module:
    """A classifier of features [B, D]: "linear" or "cosine"."""
    return CosineHead(feature_dim, classes) if kind == "cosine" else nn.Linear(feature_dim, classes)


@OBJECTIVES.register("cross_entropy")
class CrossEntropy(Objective):
    """Cross-entropy of a linear or cosine head, with label smoothing."""

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.head = make_head(config.head, feature_dim, classes)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"

    def loss(self, backbone: nn.Module, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        features = backbone(images)
        with torch.autocast(features.device.type, enabled=False):  # logits of 8 bits would be coarse
            logits = self.head(features.to(next(self.head.parameters()).dtype))  # [B, classes]
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits
