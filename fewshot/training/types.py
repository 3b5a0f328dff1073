"""What the parts of a training hand each other."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.backbones.base import Backbone
from fewshot.methods.contract import Method


class Trained(nn.Module, abc.ABC):
    """The weights of a training: a backbone, and the method or objective that stands on it.

    freeze   in train mode, parts of the backbone whose parameters are all frozen (requires_grad=False) stay in evaluation
             mode: their BatchNorm statistics do not change, and nothing in them is dropped
    """

    backbone: Backbone
    method: Method | nn.Module
    freeze: bool = True

    def train(self, mode: bool = True) -> Trained:
        super().train(mode)
        for part in frozen_parts(self.backbone) if mode and self.freeze else ():
            part.eval()
            for layer in part.modules():
                if isinstance(layer, _BatchNorm):  # which in a part of a backbone does not know of its `batch_norm`
                    layer.training = getattr(self.backbone, "batch_norm", "running") == "batch"
                    layer.track_running_stats = not layer.training
        return self

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @abc.abstractmethod
    def describe(self) -> str:
        """What stands on the backbone, with its settings."""


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The largest modules that have parameters, none of which requires a gradient."""
    parameters = list(network.parameters())
    if parameters and not any(value.requires_grad for value in parameters):
        return [network]
    return [part for child in network.children() for part in frozen_parts(child)]


class Trainable(Protocol):
    """A backbone with the method that stands on it, as losses see them.

    autocast   the precision that the backbone runs in
    """

    backbone: Backbone
    method: Method

    def autocast(self) -> torch.autocast: ...


@dataclass(frozen=True, eq=False)
class Moment:
    """Where in the training a loss is computed: all that its schedules and random parts may depend on, so that a resumed
    run repeats them.

    numbers              [E] int64, of these episodes in the run: step t has t * episodes_per_step and those after it
    seed, steps          of the training
    """

    numbers: Tensor
    seed: int = 0
    episodes_per_step: int = 1
    steps: int = 1

    @property
    def step(self) -> int:
        """Optimiser steps done before; the episodes are all of one step."""
        return int(self.numbers[0]) // self.episodes_per_step


@dataclass(frozen=True, eq=False)
class Scored:
    """One validation.

    correct      [episodes] accuracy of every episode
    picture      [3, H, W] of the first one
    inner_loop   number of inner steps -> accuracy of some of the episodes after so many; only of gradient-based learners
    """

    correct: Tensor
    picture: Tensor
    inner_loop: dict[int, float]
