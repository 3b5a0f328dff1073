"""Every setting of one training run, validated: `TrainConfig` of episodic, `SupervisedConfig` of supervised training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fewshot.backbones.base import PRECISIONS
from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.training.losses import Loss, parse_losses

Config = TypeVar("Config", bound="LoopConfig")
OPTIMISERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "step", "cosine")
HEADS = ("linear", "cosine")
VALIDATION_NORMS = ("l2n", "un")

# Of both kinds of training; name -> smallest allowed value
_INTEGERS = {"ways": 2, "shots": 1, "queries": 1, "episodes_per_step": 1, "steps": 1, "accumulate": 1, "step_size": 1,
             "warmup_steps": 0, "validation_ways": 2, "validation_shots": 1, "validation_queries": 1,
             "cycles": 1, "validate_every": 0, "validation_episodes": 2, "early_stopping_patience": 0, "checkpoint_every": 1,
             "log_every": 1, "seed": 0, "validation_seed": 0, "epochs": 1, "batch_size": 2, "crop_padding": 0}
# name -> (low, high, low itself allowed, high itself allowed)
_NUMBERS = {"lr": (0, math.inf, False, False), "lr_min": (0, math.inf, True, False),
            "weight_decay": (0, math.inf, True, False), "momentum": (0, 1, True, False), "gamma": (0, 1, False, True),
            "gradient_clip": (0, math.inf, True, False), "ema_decay": (0, 1, True, False),
            "label_smoothing": (0, 1, True, False), "cycle_gamma": (0, 1, False, True)}
# name -> allowed values
_CHOICES = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "precision": PRECISIONS, "small_classes": ("refuse", "drop"),
            "head": HEADS, "validation_norm": VALIDATION_NORMS}
_LATER: tuple[tuple[str, Any], ...] = (
    ("loss", "cross_entropy"), ("loss_parameters", {}), ("cycles", 1), ("cycle_gamma", 1.0), ("milestones", ()),
    ("recipe_parameters", {}), ("augmentation", ""), ("freeze", True))


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What both kinds of training set. "Intervals" are optimiser steps in episodic and epochs in supervised training.

    accumulate             passes a step is computed in: to save memory, or to share them among processes, of whose number
                           it must be a multiple. The gradient is that of one pass, except that BatchNorm normalises the
                           images of one pass at a time; its running statistics take the mean over the passes
    optimiser              "adam", "adamw" or "sgd" (with momentum and nesterov, which the others ignore)
    lr, weight_decay       learning rate and weight decay (L2 for adam and sgd, decoupled for adamw)
    schedule               "constant"; "step": times gamma every step_size intervals, not below lr_min; "cosine": down to
                           lr_min, which the step after the last one would have
    milestones             of "step": the intervals after which it is times gamma, instead of every step_size
    cycles                 of "cosine": so many times down, with warm restarts (Loshchilov and Hutter 2017); divides
                           the steps after the warm-up
    cycle_gamma            each cycle begins at cycle_gamma times the lr of the one before it
    warmup_steps           steps of linear warm-up to the schedule's value
    gradient_clip          largest gradient norm; 0 is off
    precision              "float32", or "bfloat16" autocast of the backbone (logits stay float32)
    ema_decay              decay of the exponential moving average of the weights, which is then what is validated and
                           kept; 0 is off. Step t uses min(ema_decay, (1 + t) / (10 + t)), so that early averages are
                           not dominated by the random initial weights
    freeze                 parts of the backbone whose parameters are all frozen (requires_grad=False) run as in evaluation:
                           BatchNorm by its recorded statistics, which do not change, and without dropout. False: as
                           the parts that train. Without effect where nothing is frozen
    validation_ways, validation_shots, validation_queries   of validation episodes (queries per class)
    small_classes          "refuse" or "drop" classes with too few images for an episode, as in EpisodeSampler
    validate_every         intervals between validations, of which there is always one at the end; 0 is off (then the
                           last weights are kept, not the best)
    validation_episodes    the same episodes every time, fixed by validation_seed
    early_stopping_patience   stop after so many validations without a new best; 0 is off
    checkpoint_every       steps between checkpoints;  log_every: steps between rows of the history
    seed                   of the order of the data, of augmentation and of random numbers inside the network (dropout)
    """

    accumulate: int = 1
    optimiser: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "step"
    cycles: int = 1
    cycle_gamma: float = 1.0
    milestones: tuple[int, ...] = ()
    step_size: int = 2000
    gamma: float = 0.5
    lr_min: float = 0.0
    warmup_steps: int = 0
    gradient_clip: float = 0.0
    precision: str = "float32"
    ema_decay: float = 0.0
    freeze: bool = True
    validation_ways: int = 5
    validation_shots: int = 1
    validation_queries: int = 5
    small_classes: str = "refuse"
    validate_every: int = 500
    validation_episodes: int = 600
    validation_seed: int = 0
    early_stopping_patience: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            name, value = field_.name, getattr(self, field_.name)
            if name in _INTEGERS:
                object.__setattr__(self, name, check_integer(name, value, _INTEGERS[name]))
            elif name in _NUMBERS:
                low, high, with_low, with_high = _NUMBERS[name]
                number = check_number(name, value, low, high, low_allowed=with_low, high_allowed=with_high)
                # lr=1 stays 1: as 1.0 it would be another fingerprint than that of runs that are stored.
                object.__setattr__(self, name, value if isinstance(value, int) else number)
            elif name in _CHOICES and value not in _CHOICES[name]:
                raise FewshotError(unknown_message(name, str(value), list(_CHOICES[name])))
        object.__setattr__(self, "milestones", _ascending(self.milestones))
        if not isinstance(self.nesterov, bool) or (self.nesterov and self.momentum == 0):
            raise FewshotError(f"nesterov={self.nesterov!r} with momentum={self.momentum}; pass True or False, and "
                               "True only with a positive momentum")
        if not isinstance(self.freeze, bool):
            raise FewshotError(f"freeze={self.freeze!r}; pass True or False")
        if self.lr_min > self.lr:
            raise FewshotError(f"lr_min={self.lr_min} exceeds lr={self.lr}; the schedules only go down")
        if self.early_stopping_patience and not self.validate_every:
            raise FewshotError(f"early_stopping_patience={self.early_stopping_patience} with validate_every=0; early "
                               "stopping needs validations: set validate_every")

    @property
    def length(self) -> int:
        """Of the training, in intervals."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What is trained, in one word."""
        raise NotImplementedError

    def steps_in_all(self, interval: int = 1) -> int:
        """Optimiser steps of the training, `interval` of them an interval; FewshotError if warm-up or cycles do not fit."""
        steps = self.length * interval
        if self.warmup_steps >= steps:
            raise FewshotError(f"warmup_steps={self.warmup_steps} leaves nothing of steps={steps}; lower it")
        if (steps - self.warmup_steps) % self.cycles:
            raise FewshotError(f"cycles={self.cycles} does not divide the {steps - self.warmup_steps} steps after the "
                               "warm-up; choose numbers that fit")
        return steps

    def learning_rate(self, step: int, interval: int = 1) -> float:
        """Learning rate of the update number `step` (from 0): a pure function, so resuming needs no scheduler state."""
        if self.schedule == "step":
            passed = sum(step >= m * interval for m in self.milestones) if self.milestones else \
                step // (self.step_size * interval)
            rate = max(self.lr_min, self.lr * self.gamma**passed)
        elif self.schedule == "cosine":
            length = (self.length * interval - self.warmup_steps) // self.cycles
            cycle, within = divmod(max(0, step - self.warmup_steps), length)
            top = max(self.lr_min, self.lr * self.cycle_gamma**cycle)
            rate = self.lr_min + (top - self.lr_min) * (1 + math.cos(math.pi * (within / length))) / 2
        else:
            rate = self.lr
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate

    def validates_after(self, step: int, interval: int = 1) -> bool:
        """Whether there is a validation when `step` updates are done."""
        due = self.validate_every and (step % (self.validate_every * interval) == 0 or step == self.length * interval)
        return step > 0 and bool(due)

    def to_dict(self) -> dict:
        """Plain values, as stored in checkpoints and provenance. Settings that came later are written only where they are
        not at their defaults: runs stored before there was a choice are those of the same settings."""
        return {key: value for key, value in dataclasses.asdict(self).items() if (key, value) not in _LATER}

    @classmethod
    def from_dict(cls: type[Config], values: dict) -> Config:
        """The inverse of `to_dict`; settings left out get their defaults, unknown ones raise with the nearest names."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise FewshotError(unknown_message("training setting", key, known))
        return cls(**values)

    def identity(self) -> dict:
        """`to_dict` as it identifies a run: without the places of files, whose content the objective describes."""
        return self.to_dict()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: equal for equal settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Settings of `train`, besides those of `LoopConfig`. The defaults are those of Prototypical Networks (Snell et al.
    2017) on Omniglot except for the number of ways: Adam, 1e-3, halved every 2 000 episodes, no weight decay.

    method, parameters     name and hyper-parameters of the method whose episodic loss is minimised
    loss, loss_parameters  what is minimised: names separated by commas, whose mean is taken (see `losses/`), and
                           {name: {parameter: value}}. A method with a loss of its own keeps it under the default
    ways, shots, queries   of training episodes (queries per class)
    episodes_per_step      E, the meta-batch: an optimiser step minimises the mean loss of E episodes; a multiple of
                           `accumulate`
    steps                  optimiser steps, which are also the intervals of LoopConfig
    """

    method: str = "protonet"
    parameters: dict = field(default_factory=dict)
    loss: str = "cross_entropy"
    loss_parameters: dict = field(default_factory=dict)
    ways: int = 20
    shots: int = 1
    queries: int = 5
    episodes_per_step: int = 1
    steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.parameters, dict):
            raise FewshotError(f"parameters={self.parameters!r}; pass a dictionary of parameters of {self.method}")
        parse_losses(self.loss, self.loss_parameters)
        if self.episodes_per_step % self.accumulate:
            raise FewshotError(f"accumulate={self.accumulate} does not divide "
                               f"episodes_per_step={self.episodes_per_step}; choose a divisor of it")
        self.steps_in_all()

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses named, whose mean is minimised."""
        return parse_losses(self.loss, self.loss_parameters)

    @property
    def length(self) -> int:
        return self.steps

    @property
    def title(self) -> str:
        return self.method


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(LoopConfig):
    """Settings of `train_supervised`, besides those of `LoopConfig`, whose intervals are epochs here. The defaults are
    the usual ones for residual networks on base classes: SGD with Nesterov momentum, 0.05, cosine, weight decay 5e-4.

    recipe            name of the objective, see `fewshot.training.recipes`; `recipe_config` has its own defaults
    recipe_parameters hyper-parameters of the objective
    epochs            passes over the images of the base classes, every image once in each
    batch_size        largest number of images of a step; the batches of an epoch differ by one image at most
    head              "linear", or "cosine": a learned scale times the cosine of feature and class weight
    label_smoothing   share of the target that is spread over all classes
    crop_padding      pixels of black border from which images are cropped back to their size at random; 0 is off
    flip              mirror half of the images left to right
    augmentation      instead of these two: steps that every image passes, e.g. "resized_crop,color_jitter(0.4),flip" (see
                      `fewshot.training.augment`). For an objective that wants several views of an image " | " separates
                      theirs; one text is for all
    validation_norm   validation takes the nearest prototype of features divided by their length ("l2n") or as they
                      are ("un")
    """

    recipe: str = "cross_entropy"
    recipe_parameters: dict = field(default_factory=dict)
    epochs: int = 90
    batch_size: int = 64
    head: str = "linear"
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    augmentation: str = ""
    validation_norm: str = "l2n"
    optimiser: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    nesterov: bool = True
    schedule: str = "cosine"
    step_size: int = 30
    gamma: float = 0.1
    validate_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.flip, bool):
            raise FewshotError(f"flip={self.flip!r}; pass True or False")
        if not isinstance(self.recipe_parameters, dict):
            raise FewshotError(f"recipe_parameters={self.recipe_parameters!r}; pass a dictionary of parameters of "
                               f"{self.recipe}")
        if not isinstance(self.augmentation, str):
            raise FewshotError(f"augmentation={self.augmentation!r}; pass a text such as 'resized_crop,flip'")
        if self.augmentation and (self.crop_padding or self.flip):
            raise FewshotError(f"augmentation={self.augmentation!r} beside crop_padding={self.crop_padding} and "
                               f"flip={self.flip}; write crop(PADDING) and flip into the augmentation")

    @property
    def length(self) -> int:
        return self.epochs

    def identity(self) -> dict:
        found = self.to_dict()
        parameters = {key: value for key, value in self.recipe_parameters.items() if key != "teacher"}
        found.pop("recipe_parameters", None)
        return {**found, "recipe_parameters": parameters} if parameters else found

    @property
    def title(self) -> str:
        return self.recipe


def _ascending(values: Any) -> tuple[int, ...]:
    try:
        found = tuple(values)
    except TypeError:
        found = (None,)
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in found) or list(found) != sorted(set(found)):
        raise FewshotError(f"milestones={values!r}; expected ascending positive integers, e.g. (60, 80)")
    return found
