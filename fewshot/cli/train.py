"""`fewshot train`: a backbone on the base classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fewshot.cli.options import Values, given, options_from_types, refuse_given
from fewshot.cli.process import is_first_process
from fewshot.cli.request import Places, images_of, say_what_is_there
from fewshot.cli.values import pairs
from fewshot.core.settings import anything, setting
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.training import SupervisedConfig, TrainResult

_TRIAL = 100  # steps
_EPISODIC = ("ways", "shots", "queries", "steps")


@dataclass
class Training:
    """How a backbone is trained."""

    recipe: str | None = setting(None, "train on classes, not on episodes: cross_entropy, simpleshot, rfs, easy, s2m2, "
                                 "baseline_pp, nsae, hct; or without labels: simclr, beclr; --set sets its parameters",
                                 anything)
    generations: int = setting(1, "with --recipe rfs: so many networks, each taught by the one before", anything)
    method: str = setting("protonet", "differentiable method; its episodic loss is minimised", anything)
    out: Path = setting(Path("runs/train"), "folder of checkpoints, TensorBoard logs, weights", anything)
    ways: int = setting(20, "classes of a training episode", anything)
    shots: int = setting(1, "support images a class", anything)
    queries: int = setting(5, "query images a class", anything)
    steps: int = setting(2000, "optimiser steps of episodic training; of fewer than 100 also fewer validation "
                         "episodes: 6 a step, unless --config validation_episodes=N", anything)
    epochs: int = setting(90, "passes over the images; with --recipe its own unless given", anything)
    lr: float = setting(1e-3, "learning rate; with --recipe its own unless given", anything)
    schedule: str = setting("cosine", "constant, step or cosine; with --recipe its own unless given", anything)
    seed: int = setting(0, "seed of initial weights and episodes", anything)
    parameters: list[str] | None = setting(None, "a hyper-parameter of the method; repeat for more", anything, flag="--set",
                                           metavar="NAME=VALUE")
    config: list[str] | None = setting(None, "any other setting of TrainConfig, or with --recipe of SupervisedConfig",
                                       anything, flag="--config", metavar="NAME=VALUE")
    device: str = setting("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, ...", anything)
    resume: bool = setting(True, "continue what is in --out, or delete it and start again", anything)


@options_from_types(left_out=("split", "weights", "crops", "runs"))
def train(context: typer.Context, subject: Values[Subject], training: Training, places: Places) -> None:
    """Train a backbone on the base classes, episodically or with --recipe on their labels; the same command resumes an
    interrupted run. Under torchrun (torchrun --nproc-per-node=2 -m fewshot train ...) several processes share the work."""
    from fewshot.backbones import create_backbone, input_for
    from fewshot.core.team import own_device
    from fewshot.datasets import load_dataset
    from fewshot.training import TrainConfig, recipe_config, train_generations, train_supervised
    from fewshot.training import train as train_on_episodes

    config: TrainConfig | SupervisedConfig
    run_training: Callable[..., TrainResult]  # with its configuration
    parameters, further = pairs(training.parameters), pairs(training.config)
    if training.recipe is None:
        refuse_given(context, ("epochs", "generations"), "without --recipe: episodic training counts --steps")
        named = {name: getattr(training, name) for name in ("method", *_EPISODIC, "lr", "schedule", "seed")}
        if training.steps < _TRIAL:  # is over in seconds, and its only validation should be, too
            named["validation_episodes"] = max(10, 6 * training.steps)
        config = TrainConfig.from_dict({**named, "parameters": parameters, **further})
        run_training = functools.partial(train_on_episodes, config)
    else:
        refuse_given(context, ("method", *_EPISODIC), f"beside --recipe {training.recipe}, which trains on images and "
                     "labels, not on episodes")
        own = {name: getattr(training, name) for name in ("epochs", "lr", "schedule") if given(context, name)}
        config = recipe_config(training.recipe, **{
            **own, "seed": training.seed, "recipe_parameters": parameters, **further})
        run_training = functools.partial(train_supervised, config)
        if given(context, "generations"):
            run_training = functools.partial(train_generations, config, generations=training.generations)
    found, root = images_of(subject, places.data_root)
    base = load_dataset(found["dataset"], "train", root=root, **found["data_options"])
    validation = None
    if config.validate_every:
        validation = load_dataset(found["dataset"], "val", root=root, **found["data_options"])
    if is_first_process():
        say_what_is_there(context, [base, *([] if validation is None else [validation])])
    options = {**input_for(found["backbone"], base.images), **found["backbone_options"]}
    network = create_backbone(found["backbone"], **options, seed=training.seed)
    network.to(own_device(training.device))
    result = run_training(base, validation, network, out=training.out, resume=training.resume)
    if is_first_process():
        typer.echo(result)
