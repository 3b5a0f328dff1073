"""Supervised training: classification of the base classes, validated by few-shot episodes of other classes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fewshot.backbones import Backbone
from fewshot.core.compiled import compile_like, plain
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.data.banks import ImageBank
from fewshot.methods.simple_shot import SimpleShot
from fewshot.training.augment import Augment, CropFlip, draws_of_epoch, in_views, parse_augmentation
from fewshot.training.config import SupervisedConfig
from fewshot.training.learner import Learner
from fewshot.training.loop import check_banks, run_training
from fewshot.training.objectives import OBJECTIVES, Objective, make_objective
from fewshot.training.record import TrainResult
from fewshot.training.types import Trained


class Classifier(Trained):
    """Backbone and objective as one trainable module."""

    method: Objective

    def __init__(self, backbone: Backbone, objective: Objective, precision: str = "float32", freeze: bool = True):
        super().__init__()
        self.backbone, self.method, self.precision, self.freeze = backbone, objective, precision, freeze

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(mean loss, logits [B, classes]) of stored images [B, C, H, W]."""
        inputs = self.backbone.transform(images)
        if self.precision == "bfloat16":  # the layout in which convolutions of 16 bits are fastest, also on CPUs
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.method.loss(self.backbone, inputs, labels, generator)

    def describe(self) -> str:
        return repr(self.method)


class ClassificationTask:
    """Epoch e goes through all images in an order that is a pure function of (seed, e), in batches whose sizes differ by
    one at most; pass p of a step takes an equal part of the batch, again up to one image."""

    unit = "images"

    def __init__(self, config: SupervisedConfig, train_bank: ImageBank, val_bank: ImageBank | None,
                 learner: Classifier, augment: Augment | None):
        self.config, self.train_bank, self.val_bank = config, train_bank, val_bank
        self.learner, self.augment = learner, augment
        self.scorer = Learner(learner.backbone, SimpleShot(norm=config.validation_norm), config.precision)
        # Classes without images get no output. Labels that an objective must not use do not reach it.
        self.labels = torch.unique(train_bank.labels, return_inverse=True)[1] if learner.method.uses_labels else None
        self.interval = math.ceil(len(train_bank) / config.batch_size)
        self.items = len(train_bank) / self.interval
        if self.items < config.accumulate:
            raise FewshotError(f"accumulate={config.accumulate} passes for batches of {int(self.items)} images; lower it")
        self._epoch: tuple[int, Tensor, Tensor] | None = None

    def part(self, step: int, number: int) -> tuple[Tensor, Tensor, float]:
        order, draws = self._of_epoch(step // self.interval)
        batch = _part(order, step % self.interval, self.interval)
        rows = _part(batch, number, self.config.accumulate)
        images = self.train_bank.take(rows)
        if self.augment is not None:
            images = self.augment(images, draws[rows])
        labels = torch.arange(len(rows)) if self.labels is None else self.labels[rows]
        return images, labels, len(rows) / len(batch)

    def loss(self, step: int, number: int, inputs: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.learner.method.at(step / (self.config.epochs * self.interval))
        return self.learner.loss(inputs, labels, generator)

    def _of_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(order [M] of the images, random numbers [M, draws] of their augmentation)."""
        if self._epoch is None or self._epoch[0] != epoch:
            seed, images = self.config.seed, len(self.train_bank)
            generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
            draws = draws_of_epoch(seed, epoch, images, self.augment.draws if self.augment else 0)
            self._epoch = epoch, torch.randperm(images, generator=generator), draws
        return self._epoch[1:]


def train_supervised(config: SupervisedConfig, train_bank: ImageBank, val_bank: ImageBank | None, backbone: Backbone, *,
                     objective: Objective | None = None, augment: Augment | None = None, out: str | Path,
                     progress: bool = True, resume: bool = True) -> TrainResult:
    """Minimise a classification loss over the images of `train_bank`; keep the weights best on episodes of `val_bank`.

    config      settings, see SupervisedConfig
    backbone    the initial weights; it is copied, not changed. Its device is used
    objective   an instance to use instead of the one that config.recipe names; its weights are trained, too
    augment     instead of the augmentation that the configuration asks for
    out, resume   as in `train`; weights.safetensors holds the weights of the objective, too

    The weights that are kept, resuming, the generators of random numbers, several processes and errors are as in `train`.
    """
    check_banks(train_bank, val_bank)
    classes = len(train_bank.labels.unique())
    if classes < 2:
        raise FewshotError(f"train_bank holds images of {classes} classes; classification needs at least 2")
    model, backbone = backbone, plain(backbone)
    if objective is None:
        objective = make_objective(config, classes, backbone)
    elif config.recipe in OBJECTIVES and not isinstance(objective, cast(type, OBJECTIVES[config.recipe])):
        raise FewshotError(f"config.recipe is {config.recipe!r}, but the objective passed is a {type(objective).__name__}; "
                           "make them agree")
    augment = _augmentation(config, augment, objective)
    backbone, objective = copy.deepcopy((backbone, objective))
    if not any(p.requires_grad for p in backbone.parameters()):
        raise FewshotError("no parameter of the backbone has requires_grad=True: there is nothing to train")
    compile_like(backbone, model)
    learner = Classifier(backbone, objective, config.precision, config.freeze)
    objective.to(learner.device)
    task = ClassificationTask(config, train_bank, val_bank, learner, augment)
    return run_training(task, out, progress, resume, augment=repr(augment))


def _augmentation(config: SupervisedConfig, augment: Augment | None, objective: Objective) -> Augment | None:
    """The augmentation asked for, in as many views as the objective takes."""
    if augment is not None and (config.crop_padding or config.flip or config.augmentation):
        raise FewshotError(f"augment={augment!r} beside augmentation={config.augmentation!r}, "
                           f"crop_padding={config.crop_padding} and flip={config.flip}; leave these out")
    if config.augmentation:
        return parse_augmentation(config.augmentation, objective.views)
    if augment is None and (config.crop_padding or config.flip):
        augment = CropFlip(config.crop_padding, config.flip)
    if augment is None and objective.views > 1:
        raise FewshotError(f"recipe {config.recipe} compares {objective.views} views of an image, which are equal without "
                           "an augmentation; set augmentation, e.g. 'resized_crop,flip'")
    return None if augment is None else in_views(augment, objective.views)


def _part(rows: Tensor, number: int, parts: int) -> Tensor:
    """Part `number` of `parts`, whose lengths differ by one at most."""
    return rows[number * len(rows) // parts : (number + 1) * len(rows) // parts]
