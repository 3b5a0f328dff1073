"""What supervised training minimises: modules with weights of their own, one for each recipe."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message
from fewshot.core.seeding import isolated_rng
from fewshot.training.config import SupervisedConfig

# name -> function of (config, number of base classes, feature_dim) that makes the objective
OBJECTIVES: Registry[Callable[[SupervisedConfig, int, int], Objective]] = Registry("recipe")


class Objective(nn.Module, abc.ABC):
    """The loss of a recipe, with the weights that are trained beside the backbone and not used afterwards.

    `repr` identifies the objective: settings that no submodule shows belong into `extra_repr`. Keywords of the constructor
    after (config, classes, feature_dim) are the hyper-parameters, which `SupervisedConfig.recipe_parameters` sets.

    defaults      settings of `SupervisedConfig` that the paper trains with, which `recipe_config` starts from
    views         how many augmentations of every image `loss` takes
    uses_labels   False for self-supervision: `loss` then gets the numbers of the images in the batch as labels
    """

    defaults: ClassVar[dict] = {}
    views: ClassVar[int] = 1
    uses_labels: ClassVar[bool] = True

    def attach(self, backbone: Backbone) -> None:
        """Make what depends on the backbone, once, before the training; raise FewshotError where it does not fit."""

    def at(self, progress: float) -> None:
        """Called before every `loss` with the share of the training that is done, in [0, 1)."""

    @abc.abstractmethod
    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(mean loss, logits [B, classes] whose accuracy is shown).

        images      [B, C, H, W], augmented and transformed, as the backbone takes them; with several views [views B, ..],
                    one view after the other
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


def recipe_config(recipe: str, **settings: Any) -> SupervisedConfig:
    """The configuration of `recipe` with the settings of its paper, but those given."""
    defaults = getattr(OBJECTIVES[recipe], "defaults", {})
    return SupervisedConfig.from_dict({**defaults, "recipe": recipe, **settings})


def make_objective(config: SupervisedConfig, classes: int, backbone: Backbone) -> Objective:
    """The objective that the configuration names, its weights a function of config.seed; raises FewshotError for
    hyper-parameters that it does not have, and for a backbone that it cannot be trained with."""
    make = OBJECTIVES[config.recipe]
    known = [name for name, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in config.recipe_parameters:
        if name not in known:
            raise FewshotError(unknown_message(f"parameter of recipe {config.recipe}", name, known))
    with isolated_rng(config.seed):  # the head must be the same when the run is resumed
        objective = make(config, classes, backbone.feature_dim, **config.recipe_parameters)
        objective.attach(backbone)
    return objective


def head_logits(head: nn.Module, features: Tensor) -> Tensor:
    """Logits [B, classes] of features [B, D] in the head's own precision: those of 8 bits would be coarse."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(next(head.parameters()).dtype))


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

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = head_logits(self.head, backbone(images))
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits
