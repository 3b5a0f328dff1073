"""The command line: `fewshot COMMAND`. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fewshot import __version__
from fewshot.cli import convert, episodes, hyper_parameters, results
from fewshot.cli import evaluate as evaluation
from fewshot.cli import predict as prediction
from fewshot.cli import sweep as sweeps
from fewshot.cli.options import (
    Backbone,
    BackboneSettings,
    Crops,
    DataRoot,
    Dataset,
    DataSettings,
    Settings,
    Split,
    Weights,
    given,
    method_names,
    pairs,
    refuse_given,
    source,
    text_of,
)
from fewshot.core.errors import FewshotError

_UsageError = typer.BadParameter.__mro__[1]  # click's; newer versions of typer carry their own copy of click
_DEBUG, _QUIET = "--debug", "--quiet"


class _Stopped(Exception):
    """The user's interruption; not a KeyboardInterrupt, which typer would turn into a bare exit code."""


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped(*stop.args, getattr(stop, "signal", signal.SIGINT)) from stop


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, suggest_commands=True,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Few-shot learning: episodes, methods, and accuracy with intervals.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fewshot {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(context: typer.Context,
               version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                     help="show the version and exit")] = False,
               debug: Annotated[bool, typer.Option(_DEBUG, help="show the traceback of an error, with any command")] = False,
               quiet: Annotated[bool, typer.Option(_QUIET, help="no progress bars, with any command")] = False):
    if quiet:
        context.with_resource(_without_bars())


@app.command("list")
def list_names(kind: Annotated[str, typer.Argument(help="methods, backbones, datasets or all")] = "all"):
    """Names that can be used for methods, backbones and data sets."""
    from fewshot.core.registry import unknown_message

    kinds = ("methods", "backbones", "datasets")
    if kind not in (*kinds, "all"):
        raise FewshotError(unknown_message("kind of name", kind, [*kinds, "all"]))
    from rich.console import Console

    from fewshot.cli.listing import listing

    for table in listing(kinds if kind == "all" else (kind,)):
        Console().print(table)


@app.command()
def data(data_root: DataRoot = None,
         how: Annotated[str | None, typer.Option(help="print how to get this data set")] = None,
         sheet: Annotated[Path | None, typer.Option(help="draw a contact sheet (PNG) of --dataset's --split here")] = None,
         dataset: Dataset = "glyphs", split: Split = None):
    """Every data set: present or missing, where, images, classes per split, licence, how to get it."""
    from fewshot import datasets

    if how is not None:
        typer.echo(datasets.instructions(how, data_root))
    elif sheet is not None:
        from fewshot.core.files import write_atomically

        picture = io.BytesIO()
        datasets.contact_sheet(_load(dataset, split, data_root)).save(picture, "PNG")
        typer.echo(f"wrote {write_atomically(sheet, picture.getvalue())}")
    else:
        from rich.console import Console

        from fewshot.cli.listing import data_listing

        Console().print(data_listing(data_root))


@app.command()
def train(context: typer.Context, dataset: Dataset = "glyphs", backbone: Backbone = "conv4",
          recipe: Annotated[str | None, typer.Option(help="train on classes, not on episodes: cross_entropy, simpleshot, "
                                                     "rfs, easy, s2m2, baseline_pp, nsae, hct; or without labels: simclr, "
                                                     "beclr; --set sets its parameters")] = None,
          generations: Annotated[int, typer.Option(help="with --recipe rfs: so many networks, each taught by the one "
                                                   "before")] = 1,
          method: Annotated[str, typer.Option(help="differentiable method; its episodic loss is minimised",
                                              autocompletion=method_names)] = "protonet",
          out: Annotated[Path, typer.Option(help="folder of checkpoints, TensorBoard logs, weights")] = Path("runs/train"),
          ways: Annotated[int, typer.Option(help="classes of a training episode")] = 20,
          shots: Annotated[int, typer.Option(help="support images a class")] = 1,
          queries: Annotated[int, typer.Option(help="query images a class")] = 5,
          steps: Annotated[int, typer.Option(help="optimiser steps of episodic training")] = 2000,
          epochs: Annotated[int, typer.Option(help="passes over the images; with --recipe its own unless given")] = 90,
          lr: Annotated[float, typer.Option(help="learning rate; with --recipe its own unless given")] = 1e-3,
          schedule: Annotated[str, typer.Option(help="constant, step or cosine; with --recipe its own unless given"
                                               )] = "cosine",
          seed: Annotated[int, typer.Option(help="seed of initial weights and episodes")] = 0,
          set_: Settings = None, data_set: DataSettings = None, backbone_set: BackboneSettings = None,
          config: Annotated[list[str] | None, typer.Option("--config", metavar="NAME=VALUE",
                                                           help="any other setting of TrainConfig, or with --recipe of "
                                                                "SupervisedConfig")] = None,
          device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
          data_root: DataRoot = None,
          resume: Annotated[bool, typer.Option(help="continue what is in --out, or delete it and start again")] = True):
    """Train a backbone on the base classes, episodically or with --recipe on their labels; the same command resumes an
    interrupted run. Under torchrun (torchrun --nproc-per-node=2 -m fewshot train ...) several processes share the work."""
    from fewshot.backbones import check_backbone, create_backbone, input_for
    from fewshot.core.team import own_device
    from fewshot.training import TrainConfig, recipe_config, train_generations, train_supervised
    from fewshot.training import train as train_on_episodes

    options = pairs(data_set)
    if recipe is None:
        refuse_given(context, ("epochs", "generations"), "without --recipe: episodic training counts --steps")
        run_training, training = train_on_episodes, TrainConfig.from_dict({
            "method": method, "parameters": pairs(set_), "ways": ways, "shots": shots, "queries": queries, "steps": steps,
            "lr": lr, "schedule": schedule, "seed": seed, **pairs(config)})
    else:
        refuse_given(context, ("method", "ways", "shots", "queries", "steps"),
                      f"beside --recipe {recipe}, which trains on images and labels, not on episodes")
        chosen = {"epochs": epochs, "lr": lr, "schedule": schedule}
        run_training, training = train_supervised, recipe_config(recipe, **{
            **{name: value for name, value in chosen.items() if given(context, name)}, "seed": seed,
            "recipe_parameters": pairs(set_), **pairs(config)})
        if given(context, "generations"):
            run_training = functools.partial(train_generations, generations=generations)
    check_backbone(backbone)
    base = _load(dataset, "train", data_root, **options)
    validation = _load(dataset, "val", data_root, **options) if training.validate_every else None
    network = create_backbone(backbone, **{**input_for(backbone, base.images), **pairs(backbone_set)}, seed=seed)
    network.to(own_device(device))
    result = run_training(training, base, validation, network, out=out, resume=resume)
    if _speaks():
        typer.echo(result)


@app.command()
def embed(out: Annotated[Path, typer.Option(help="file to write (.safetensors)")], dataset: Dataset = "glyphs",
          split: Split = None, backbone: Backbone = "conv4",
          weights: Weights = None, crops: Crops = "", data_set: DataSettings = None,
          backbone_set: BackboneSettings = None, data_root: DataRoot = None,
          precision: Annotated[str, typer.Option(help="of the backbone's arithmetic: float32, or bfloat16, which is faster "
                                                 "and less accurate; the features are then others")] = "float32",
          cache: Annotated[Path, typer.Option(help="folder for partial extractions")] = Path("runs/cache")):
    """Extract the features of one split once; an interrupted extraction continues."""
    from fewshot.backbones import check_backbone
    from fewshot.features.extract import embed as extract
    from fewshot.features.source import backbone_for
    from fewshot.features.subject import Subject

    check_backbone(backbone, weights)
    images = _load(dataset, split, data_root, **pairs(data_set))
    subject = Subject(images.name, backbone=backbone, weights=text_of(weights), backbone_options=pairs(backbone_set))
    features = extract(images, backbone_for(subject, images), cache=cache, progress=True, crops=crops,
                       precision=precision)
    typer.echo(f"wrote {features.save(out)}: {len(features)} x {features.features.shape[1]}")


@app.command()
def join(features: Annotated[list[Path], typer.Argument(help="feature banks of the same images, from `fewshot embed`")],
         out: Annotated[Path, typer.Option(help="file to write (.safetensors)")]):
    """Put the features of several backbones side by side: an ensemble, for `fewshot eval --features`."""
    from fewshot.data.banks import FeatureBank, concatenate

    joined = concatenate([FeatureBank.load(path) for path in features])
    typer.echo(f"wrote {joined.save(out)}: {len(joined)} x {joined.features.shape[1]}")


app.command("eval")(evaluation.evaluate)
for command in (results.compare, results.plan, results.table, results.report, hyper_parameters.tune, hyper_parameters.fit,
                prediction.predict, convert.convert, sweeps.sweep):
    app.command()(command)
app.add_typer(episodes.app, name="episodes")


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A mistake of the user is one line on stderr and exit code 2, not a traceback; an interruption is one
    line and 128 + the signal. Without arguments: the help."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # They belong before the command, but one adds them at the end of the line that failed.
    arguments = sorted(arguments, key=lambda text: text not in (_DEBUG, _QUIET))
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: typer.secho(f"warning: {message}", fg="yellow", err=True)
        try:
            code = app(arguments or ["--help"], prog_name="fewshot", standalone_mode=False)
        except _Stopped as stop:
            *text, number = stop.args
            _fail(text[0] if text else "interrupted; what was finished is kept", 128 + number)
        except _UsageError as error:
            _fail(f"error: {error.format_message()}")
        except (FewshotError, OSError) as error:
            if _DEBUG in arguments:
                traceback.print_exc()
            # An OSError is a full disk or a folder without permission.
            remedy = "; choose another place, free disk space or change the permissions" * isinstance(error, OSError)
            _fail(f"error: {error}{remedy}")
    sys.exit(code if isinstance(code, int) else 0)


def _speaks() -> bool:
    """Whether this is the only process, or the first on this machine of those that torchrun started: all meet the same
    mistakes, and one message is enough."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _fail(message: str, code: int = 2) -> None:
    if _speaks():
        typer.secho(message, fg="red", err=True)
    sys.exit(code)


@contextmanager
def _without_bars():
    """No progress bar of any package, whoever asks for one."""
    from tqdm import tqdm

    original = tqdm.__init__
    tqdm.__init__ = lambda bar, *arguments, **options: original(bar, *arguments, **{**options, "disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = original


def _load(dataset: str, split: str | None, root: Path | None, **options):
    from fewshot.datasets import load_dataset

    dataset, split, root = source(dataset, split, root, options)
    return load_dataset(dataset, split, root=root, **options)


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
