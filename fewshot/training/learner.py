"""Backbone and method as one trainable module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewshot.backbones.base import Backbone
from fewshot.core.compiled import compile_like, plain
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes
from fewshot.features.extract import embed_episodes
from fewshot.methods.bases.test_time_learner import FineTuning
from fewshot.methods.contract import METHODS, Method, TakesBackbone, create_method
from fewshot.training.config import TrainConfig
from fewshot.training.losses import NetworkLoss, mean_of
from fewshot.training.types import Moment, Trained

T = TypeVar("T")


class Learner(Trained):
    """Image episodes -> logits [E, Q, N].

    A method whose `inputs` are "images" holds the backbone itself and gets the transformed images.
    precision   "bfloat16" runs the backbone in autocast; the method's arithmetic stays in float32, because distances
                between numbers of 8 bits would be noise
    config      of the training, whose losses `loss` takes; None for the defaults
    """

    method: Method

    def __init__(self, backbone: Backbone, method: Method, precision: str = "float32", config: TrainConfig | None = None):
        super().__init__()
        self.backbone, self.method, self.precision = backbone, method, precision
        self.config = TrainConfig() if config is None else config
        self.losses, self.freeze = self.config.losses, self.config.freeze

    def forward(self, episodes: Episodes) -> Tensor:
        return self._apply_to(episodes, self.method)  # [E, Q, N]

    def loss(self, episodes: Episodes, query_labels: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(mean loss of the episodes to minimise, logits [E, Q, N]): by a loss that looks into the network where that is
        configured, else by the method's own `loss(episodes, query_labels)` where it has one, else the mean of the losses.

        numbers   [E] int64, of the episodes in the run (default 0, 1, ..), from which some losses derive what is random
        """
        if isinstance(self.losses[0], NetworkLoss):
            numbers = torch.arange(len(episodes)) if numbers is None else numbers
            moment = Moment(numbers, self.config.seed, self.config.episodes_per_step, self.config.steps)
            return self.losses[0].of(self, episodes, query_labels, moment)
        own = getattr(self.method, "loss", None)
        if own is not None:
            return self._apply_to(episodes, lambda prepared: own(prepared, query_labels))

        def score(prepared: Episodes) -> tuple[Tensor, Tensor]:
            logits = self.method(prepared)
            return mean_of(self.losses, prepared, query_labels, logits), logits

        return self._apply_to(episodes, score)

    def autocast(self) -> torch.autocast:
        """The precision that the backbone runs in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _apply_to(self, episodes: Episodes, method: Callable[[Episodes], T]) -> T:
        """`method` of the episodes as it takes them: images, or the features of the backbone."""
        with self.autocast():
            if self.method.inputs == "images":
                return method(episodes.with_features(self.backbone.transform))
            features = embed_episodes(episodes, self.backbone)
        return method(features.to(torch.float32) if self.precision == "bfloat16" else features)

    def trajectory(self, episodes: Episodes, at: set[int]) -> Tensor:
        """Logits [T, E, Q, N] of a gradient-based learner after the numbers of inner steps in `at`, ascending."""
        method: Any = self.method  # one that has inner steps
        return self._apply_to(episodes, lambda prepared: method.trajectory(prepared, at))

    def describe(self) -> str:
        """The method with its settings."""
        method = getattr(self.method, "settings", self.method)  # a gradient-based learner keeps its settings apart
        fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
        return f"{type(method).__name__} { {field.name: getattr(method, field.name) for field in fields} }"


def make_learner(config: TrainConfig, backbone: Backbone, method: Method | None) -> Learner:
    """A learner of copies of `backbone` and `method` (created from the config where None), so that training leaves the
    caller's untouched. Raises FewshotError for a method that cannot be trained or is not the configured one."""
    model, backbone = backbone, plain(backbone)
    if method is None:
        with isolated_rng(config.seed):  # the weights of a method must be the same when the run is resumed
            method = create_method(config.method, **config.parameters)
        if isinstance(method, FineTuning):
            raise FewshotError(f"{config.method} adapts a trained backbone to each test episode and has nothing to train; "
                               "train with another method, e.g. protonet, and evaluate those weights with it")
        if method.needs_backbone and isinstance(method, TakesBackbone):
            method = method.with_backbone(backbone, config.ways, seed=config.seed)
        if method.needs_base:
            raise FewshotError(f"{config.method} with these parameters needs statistics of the base features, which "
                               "change during training; choose other parameters or another method")
    elif config.method in METHODS and not isinstance(getattr(method, "settings", method), METHODS[config.method]):
        raise FewshotError(f"config.method is {config.method!r}, but the method passed is a {type(method).__name__}; "
                           "make them agree")
    ways = getattr(method, "ways", None)
    if config.validate_every and ways not in (None, config.validation_ways):
        raise FewshotError(f"validation_ways={config.validation_ways}, but {config.method} has a head of {ways} outputs; "
                           "validate with as many ways as you train with, or choose proto_maml")
    # Copied together: a method may hold the same backbone.
    learner = Learner(*copy.deepcopy((backbone, method)), config.precision, config)
    if learner.method.inputs == "features":  # the others need the network itself
        compile_like(learner.backbone, model)
    _check_losses(config, learner)
    if not any(p.requires_grad for p in learner.parameters()):
        raise FewshotError("neither the backbone nor the method has a parameter with requires_grad=True: there is "
                           "nothing to train")
    return learner


def _check_losses(config: TrainConfig, learner: Learner) -> None:
    """Raise FewshotError for losses that the learner cannot be trained with."""
    if isinstance(learner.losses[0], NetworkLoss):
        learner.losses[0].check(learner)
        return
    own = hasattr(learner.method, "loss") and config.loss != "cross_entropy"
    if own or (learner.method.inputs == "images" and any(loss.needs_features for loss in learner.losses)):
        why = "has a loss of its own" if own else "takes images, and these losses need features"
        raise FewshotError(f"loss={config.loss!r}, but {config.method} {why}; leave loss at 'cross_entropy', or choose a "
                           "method on features such as protonet")
