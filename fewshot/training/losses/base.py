"""The loss contract: what episodic training minimises."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import check_types
from fewshot.training.types import Moment, Trainable

LOSSES: Registry[type] = Registry("loss")


class Loss(abc.ABC):
    """Base of all losses. A subclass is a frozen dataclass whose fields are its parameters, registered with
    `@LOSSES.register("name")`. It is the mean over episodes of a number that depends on one episode alone.

    needs_features   False where it looks at the logits only, so that it fits methods on images, too
    paper            where it was published, and code
    """

    needs_features: ClassVar[bool] = True
    source: ClassVar[str] = ""

    @abc.abstractmethod
    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        """Scalar [] of episodes of features, query labels [E, Q] and the method's logits [E, Q, N]."""


class NetworkLoss(Loss):
    """A loss that looks into the network, so that it runs the learner itself. It contains the loss of the task and is
    therefore not combined with others."""

    @abc.abstractmethod
    def of(self, learner: Trainable, episodes: Episodes, query_labels: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """(scalar loss, logits [E, Q, N]) of episodes of images."""

    @abc.abstractmethod
    def check(self, learner: Trainable) -> None:
        """Raise FewshotError for a learner it does not fit; called before training."""

    def __call__(self, features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
        raise FewshotError(f"{type(self).__name__} needs the network, not features; use it as TrainConfig.loss")


def create_loss(name: str, **params: Any) -> Loss:
    """The loss `name` with parameters `params`; unknown names and parameters raise with the nearest ones."""
    cls = LOSSES[name]
    known = [field.name for field in dataclasses.fields(cls)]
    for key in params:
        if key not in known:
            raise FewshotError(unknown_message(f"parameter of loss {name}", key, known))
    check_types(name, cls, params)
    return cls(**params)


def list_losses() -> list[str]:
    """Registered names, sorted."""
    return list(LOSSES)


def parse_losses(names: str, parameters: dict[str, dict]) -> tuple[Loss, ...]:
    """The losses of `names`, separated by commas, with parameters {name: {parameter: value}}.

    Raises FewshotError for unknown and repeated names, for parameters of a loss that is not used, and for a NetworkLoss
    together with others.
    """
    if not isinstance(names, str) or not isinstance(parameters, dict):
        raise FewshotError(f"loss={names!r}, loss_parameters={parameters!r}; pass names separated by commas, and a "
                           "dictionary {name: {parameter: value}}")
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if listed.count(name) > 1:
            raise FewshotError(f"loss={names!r} names {name!r} twice; name each loss once")
        LOSSES[name]  # noqa: B018 - an unknown name raises
    for name, given in parameters.items():
        if name not in listed:
            raise FewshotError(f"loss_parameters for {name!r}, but loss={names!r}: " +
                               unknown_message("loss here", name, listed))
        if not isinstance(given, dict):
            raise FewshotError(f"loss_parameters[{name!r}]={given!r}; pass a dictionary of parameters of {name}")
    losses = tuple(create_loss(name, **parameters.get(name, {})) for name in listed)
    alone = [name for name, loss in zip(listed, losses, strict=True) if isinstance(loss, NetworkLoss)]
    if alone and len(losses) > 1:
        raise FewshotError(f"loss={names!r}: {alone[0]} contains the cross-entropy of the task already and weighs its parts "
                           "itself; name it alone")
    return losses


def mean_of(losses: tuple[Loss, ...], features: Episodes, query_labels: Tensor, logits: Tensor) -> Tensor:
    """Mean of the values of `losses`, each with the same weight."""
    return functools.reduce(torch.add, (loss(features, query_labels, logits) for loss in losses)) / len(losses)
