"""Backbone and method as one trainable module."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fewshot.embed import embed_episodes
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.methods.base import METHODS, Method, create_method
from fewshot.rng import isolated_rng
from fewshot.training.config import TrainConfig


class Learner(nn.Module):
    """Image episodes -> logits [E, Q, N].

    A method whose `inputs` are "images" holds the backbone itself and gets the transformed images.
    precision   "bfloat16" runs the backbone in autocast; the method's arithmetic stays in float32, because distances
                between numbers of 8 bits would be noise
    """

    def __init__(self, backbone: nn.Module, method: Method, precision: str = "float32"):
        super().__init__()
        self.backbone, self.method, self.precision = backbone, method, precision

    def forward(self, episodes: Episodes) -> Tensor:
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if self.method.inputs == "images":
                return self.method(episodes.with_features(self.backbone.transform))  # [E, Q, N]
            features = embed_episodes(episodes, self.backbone)
        return self.method(features.to(torch.float32) if half else features)  # [E, Q, N]

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device


def make_learner(config: TrainConfig, backbone: nn.Module, method: Method | None) -> Learner:
    """A learner of copies of `backbone` and `method` (created from the config where None), so that training leaves the
    caller's untouched. Raises FewshotError for a method that cannot be trained or is not the configured one."""
    if method is None:
        with isolated_rng(config.seed):  # the weights of a method must be the same when the run is resumed
            method = create_method(config.method, **config.parameters)
        if method.needs_base:
            raise FewshotError(f"{config.method} with these parameters needs statistics of the base features, which "
                               "change during training; choose other parameters or another method")
    elif config.method in METHODS and not isinstance(method, METHODS[config.method]):
        raise FewshotError(f"config.method is {config.method!r}, but the method passed is a {type(method).__name__}; "
                           "make them agree")
    # Copied together: a method may hold the same backbone.
    learner = Learner(*copy.deepcopy((backbone, method)), config.precision)
    if not any(p.requires_grad for p in learner.parameters()):
        raise FewshotError("neither the backbone nor the method has a parameter with requires_grad=True: there is "
                           "nothing to train")
    return learner
