"""Tiny training runs shared by the tests of this folder; imported by the processes that get killed, too."""

from __future__ import annotations

import contextlib
import time
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewshot.backbones import Backbone, ImageTransform, create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.data.banks import ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.methods.contract import Method
from fewshot.methods.protonet import ProtoNet
from fewshot.training import SupervisedConfig, TrainConfig, recipe_config, train, train_supervised

SIZE = 8


class Tiny(Backbone):
    """One convolution, optional BatchNorm and dropout."""

    def __init__(self, dropout: float = 0.3, batch_norm: bool = True):
        super().__init__(192, ImageTransform(1, SIZE))
        self.conv = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def spatial(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(x)).relu())

    def pool(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 5


def tiny(seed: int = 0, **options) -> Tiny:
    with isolated_rng(seed):
        return Tiny(**options)


def bank(split: str = "train", classes: int = 12, images: int = 12, seed: int = 0) -> ImageBank:
    """Each class is a weak pattern under strong ones that say nothing about the class and are the same in every split:
    what helps on new classes is to learn to ignore those."""
    nuisance = torch.randn(4, SIZE * SIZE, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed + (1000 if split == "val" else 0))
    patterns = torch.randn(classes, 1, SIZE * SIZE, generator=generator)
    strength = torch.randn(classes, images, 4, generator=generator)
    pixels = 128 + 15 * patterns + 15 * strength @ nuisance + 5 * torch.randn(classes, images, 64, generator=generator)
    labels = torch.arange(classes).repeat_interleave(images)
    return ImageBank(pixels.clamp(0, 255).to(torch.uint8).view(-1, 1, SIZE, SIZE), labels, name="patterns", split=split)


def config(**changes) -> TrainConfig:
    small = {"ways": 4, "shots": 1, "queries": 3, "episodes_per_step": 2, "steps": 24, "lr": 0.01, "schedule": "cosine",
             "validation_ways": 4, "validation_queries": 3, "validation_episodes": 10, "validate_every": 8,
             "checkpoint_every": 5, "log_every": 3, "ema_decay": 0.9}
    return TrainConfig(**{**small, **changes})


def run(out, *, backbone=None, method=None, method_name="protonet", resume=True, **changes):
    """Train in `out`; `method` is an instance of a method that is not registered."""
    changes["method"] = method_name if method is None else "custom"
    return train(config(**changes), bank("train"), bank("val"), tiny() if backbone is None else backbone, method=method,
                 out=out, progress=False, resume=resume)


def supervised_config(**changes) -> SupervisedConfig:
    """Three epochs of eight steps."""
    small = {"epochs": 3, "batch_size": 18, "lr": 0.02, "validation_ways": 4, "validation_queries": 3,
             "validation_episodes": 10, "checkpoint_every": 5, "log_every": 3, "ema_decay": 0.9, "crop_padding": 1,
             "flip": True, "label_smoothing": 0.1}
    return SupervisedConfig(**{**small, **changes})


def run_supervised(out, *, backbone=None, objective=None, augment=None, resume=True, **changes):
    changes["recipe"] = changes.get("recipe", "cross_entropy") if objective is None else "custom"
    return train_supervised(supervised_config(**changes), bank("train"), bank("val"),
                            tiny() if backbone is None else backbone, objective=objective, augment=augment, out=out,
                            progress=False, resume=resume)


def small_conv4(seed: int = 0) -> Backbone:
    """Three stages and more, as the recipes need that mix hidden maps."""
    return create_backbone("conv4", channels=1, image_size=16, width=6, seed=seed)


def run_recipe(out, *, recipe, backbone=None, resume=True, **changes):
    """Three epochs of eight steps of a recipe, with the settings of its paper otherwise."""
    small = {"epochs": 3, "batch_size": 18, "lr": 0.02, "schedule": "cosine", "cycles": 1, "validation_ways": 4,
             "validation_queries": 3, "validation_episodes": 10, "checkpoint_every": 5, "log_every": 3,
             "augmentation": "affine,color_jitter(0.2)"}
    return train_supervised(recipe_config(recipe, **{**small, **changes}), bank("train"), bank("val"),
                            small_conv4() if backbone is None else backbone, out=out, progress=False, resume=resume)


KINDS = {"episodic": run, "supervised": run_supervised}


@contextlib.contextmanager
def fails_at(step: int, episodes_per_step: int = 2):
    """Training fails when it draws the episodes of this step."""
    plain = EpisodeSampler.sample

    def sample(self, images, start, count):
        if images.split == "train" and start >= step * episodes_per_step:
            raise ZeroDivisionError
        return plain(self, images, start, count)

    with mock.patch.object(EpisodeSampler, "sample", sample):
        yield


def run_in_child(out: str, connection, delay: float, kind: str = "episodic", team: tuple[int, int, str] | None = None,
                 **changes) -> None:
    """Entry point of a child process: report when training begins, then slow every step down by about `delay` seconds,
    so that signals hit anywhere. Sends how the run ended. `team` is rank, number of processes and a file to meet at."""
    torch.set_num_threads(1)
    plain = ImageBank.take

    def slow(self, indices):
        time.sleep(delay)
        return plain(self, indices)

    with mock.patch.object(ImageBank, "take", slow):
        if team is not None:
            rank, size, meeting = team
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        connection.send("started")
        try:
            {**KINDS, "recipe": run_recipe}[kind](out, **changes)
            connection.send("finished")
        except (KeyboardInterrupt, FewshotError) as stop:
            connection.send(str(stop))


class NanInTheSecondProcess(Method):
    """ProtoNet whose logits are NaN in the process of rank 1."""

    def __call__(self, episodes):
        return ProtoNet()(episodes) * (float("nan") if dist.get_rank() == 1 else 1.0)
