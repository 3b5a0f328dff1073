"""The command line: `fewshot COMMAND`. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fewshot import __version__, commands, commands_predict, episode_commands, result_commands
from fewshot.errors import FewshotError
from fewshot.options import (
    Backbone,
    BaseFeatures,
    DataRoot,
    Dataset,
    DataSettings,
    Episodes,
    Features,
    KEff,
    OpenClasses,
    OpenQueries,
    Runs,
    Seed,
    Settings,
    Split,
    Transforms,
    Weights,
    described,
    integers,
    method_names,
    numbers,
    pairs,
    source,
    text_of,
    words,
)

_UsageError = typer.BadParameter.__mro__[1]  # click's; newer versions of typer carry their own copy of click
_DEBUG, _QUIET = "--debug", "--quiet"
_FLAGS = {"data_set": "--data-option", "set_": "--set"}


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
    from fewshot.registry import unknown_message

    kinds = ("methods", "backbones", "datasets")
    if kind not in (*kinds, "all"):
        raise FewshotError(unknown_message("kind of name", kind, [*kinds, "all"]))
    from rich.console import Console

    from fewshot.listing import listing

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
        from fewshot.files import write_atomically

        picture = io.BytesIO()
        datasets.contact_sheet(_load(dataset, split, data_root)).save(picture, "PNG")
        typer.echo(f"wrote {write_atomically(sheet, picture.getvalue())}")
    else:
        from rich.console import Console

        from fewshot.listing import data_listing

        Console().print(data_listing(data_root))


@app.command()
def train(context: typer.Context, dataset: Dataset = "glyphs", backbone: Backbone = "conv4",
          recipe: Annotated[str | None, typer.Option(help="train on classes, not on episodes: cross_entropy")] = None,
          method: Annotated[str, typer.Option(help="differentiable method; its episodic loss is minimised",
                                              autocompletion=method_names)] = "protonet",
          out: Annotated[Path, typer.Option(help="folder of checkpoints, TensorBoard logs, weights")] = Path("runs/train"),
          ways: Annotated[int, typer.Option(help="classes of a training episode")] = 20,
          shots: Annotated[int, typer.Option(help="support images a class")] = 1,
          queries: Annotated[int, typer.Option(help="query images a class")] = 5,
          steps: Annotated[int, typer.Option(help="optimiser steps of episodic training")] = 2000,
          epochs: Annotated[int, typer.Option(help="passes over the images with --recipe")] = 90,
          lr: Annotated[float, typer.Option(help="learning rate; with --recipe 0.05 unless given")] = 1e-3,
          schedule: Annotated[str, typer.Option(help="constant, step or cosine")] = "cosine",
          seed: Annotated[int, typer.Option(help="seed of initial weights and episodes")] = 0,
          set_: Settings = None, data_set: DataSettings = None,
          config: Annotated[list[str] | None, typer.Option("--config", metavar="NAME=VALUE",
                                                           help="any other setting of TrainConfig, or with --recipe of "
                                                                "SupervisedConfig")] = None,
          device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
          data_root: DataRoot = None,
          resume: Annotated[bool, typer.Option(help="continue what is in --out, or delete it and start again")] = True):
    """Train a backbone on the base classes, episodically or with --recipe on their labels; the same command resumes an
    interrupted run. Under torchrun (torchrun --nproc-per-node=2 -m fewshot train ...) several processes share the work."""
    from fewshot.backbones import check_backbone, create_backbone, input_for
    from fewshot.training import SupervisedConfig, TrainConfig, train_supervised
    from fewshot.training import train as train_on_episodes
    from fewshot.training.parallel import own_device

    options = pairs(data_set)
    if recipe is None:
        _refuse_given(context, ("epochs",), "without --recipe: episodic training counts --steps")
        run_training, training = train_on_episodes, TrainConfig.from_dict({
            "method": method, "parameters": pairs(set_), "ways": ways, "shots": shots, "queries": queries, "steps": steps,
            "lr": lr, "schedule": schedule, "seed": seed, **pairs(config)})
    else:
        _refuse_given(context, ("method", "ways", "shots", "queries", "steps", "set_"),
                      f"beside --recipe {recipe}, which trains on images and labels, not on episodes")
        chosen = {"lr": lr} if _given(context, "lr") else {}
        run_training, training = train_supervised, SupervisedConfig.from_dict({
            "recipe": recipe, "epochs": epochs, "schedule": schedule, "seed": seed, **chosen, **pairs(config)})
    check_backbone(backbone)
    base = _load(dataset, "train", data_root, **options)
    validation = _load(dataset, "val", data_root, **options) if training.validate_every else None
    network = create_backbone(backbone, **input_for(backbone, base.images), seed=seed).to(own_device(device))
    result = run_training(training, base, validation, network, out=out, resume=resume)
    if _speaks():
        typer.echo(result)


@app.command()
def embed(out: Annotated[Path, typer.Option(help="file to write (.safetensors)")], dataset: Dataset = "glyphs",
          split: Split = None, backbone: Backbone = "conv4",
          weights: Weights = None, data_set: DataSettings = None, data_root: DataRoot = None,
          cache: Annotated[Path, typer.Option(help="folder for partial extractions")] = Path("runs/cache")):
    """Extract the features of one split once; an interrupted extraction continues."""
    from fewshot.backbones import check_backbone
    from fewshot.embed import embed as extract
    from fewshot.pipeline import backbone_for
    from fewshot.run import Run

    check_backbone(backbone, weights)
    images = _load(dataset, split, data_root, **pairs(data_set))
    run = Run(dataset=images.name, backbone=backbone, weights=text_of(weights))
    features = extract(images, backbone_for(run, images), cache=cache, progress=True)
    typer.echo(f"wrote {features.save(out)}: {len(features)} x {features.features.shape[1]}")


@app.command("eval")
def evaluate(context: typer.Context, dataset: Dataset = "glyphs", split: Split = None, backbone: Backbone = "conv4",
             weights: Weights = None,
             features: Features = None, base_features: BaseFeatures = None,
             method: Annotated[str, typer.Option(help="methods, comma-separated; see `fewshot list methods`",
                                              autocompletion=method_names)] = "protonet",
             ways: Annotated[str, typer.Option(help="classes an episode, comma-separated")] = "5",
             shots: Annotated[str, typer.Option(help="support images a class, comma-separated")] = "1,5",
             queries: Annotated[str, typer.Option(help="query images a class, comma-separated")] = "15",
             query_distribution: Annotated[str, typer.Option(help="balanced, dirichlet, k_eff, natural; comma-separated")]
             = "balanced",
             alpha: Annotated[str, typer.Option(help="concentration of the Dirichlet distribution, comma-separated")] = "2",
             k_eff: KEff = None, open_classes: OpenClasses = 0, open_queries: OpenQueries = 0, episodes: Episodes = 10_000,
             seed: Seed = 0, transforms: Transforms = "",
             learned: Annotated[Path | None, typer.Option(help="values learned by `fewshot fit`")] = None,
             set_: Settings = None, data_set: DataSettings = None, data_root: DataRoot = None, runs: Runs = Path("runs"),
             episode_file: Annotated[Path | None, typer.Option(help="episodes from `fewshot episodes save`; they set ways, "
                                                               "shots and the rest of the protocol")] = None,
             metrics: Annotated[bool, typer.Option(help="also likelihood, Brier score, calibration error")] = False,
             calibrate: Annotated[bool, typer.Option(help="also these with a temperature fitted on validation classes")]
             = False,
             calibration_features: Annotated[Path | None, typer.Option(help="feature bank of the validation classes, for "
                                                                       "--calibrate beside --features")] = None,
             figure: Annotated[Path | None, typer.Option(help="draw accuracy against what is a list (shots, ways, queries "
                                                         "or alpha): FIGURE.png and .pdf")] = None,
             json_file: Annotated[Path | None, typer.Option("--json", help="also write the results here; - prints them, "
                                                                 "and no table")] = None):
    """Accuracy with 95 % intervals over episodes of cached features. Finished runs are not repeated."""
    from fewshot.backbones import check_backbone
    from fewshot.banks import FeatureBank
    from fewshot.evaluate import evaluate as score
    from fewshot.files import write_atomically
    from fewshot.pipeline import FeatureSource, pretraining_notes
    from fewshot.run import Run
    from fewshot.store import Store
    from fewshot.tables import results_table

    options, distributions = pairs(data_set), words(query_distribution)
    _check_eval(context, features, base_features, k_eff, distributions)
    if episode_file:
        _check_alone(context, episode_file)
    if calibration_features and not features or calibrate and features and not calibration_features:
        raise FewshotError("--calibrate beside --features needs the features of the validation classes, "
                           "--calibration-features FILE; without --features they are made from the data set")
    bank = FeatureBank.load(features) if features else None
    base_bank = FeatureBank.load(base_features) if base_features else None
    if bank is None:
        check_backbone(backbone, weights)
        dataset, split, data_root = source(dataset, split, data_root, options)
        subject, notes = {"dataset": dataset, "split": split, "backbone": backbone, "weights": text_of(weights)}, ()
    else:
        subject = described(bank)
        notes = pretraining_notes(subject["backbone"], bank.provenance.get("pretrained_on"), bank.name)
    values = _learned(learned, words(method))
    lists = {"ways": integers("--ways", ways), "shots": integers("--shots", shots),
             "queries": integers("--queries", queries), "alpha": numbers("--alpha", alpha)}
    wanted = [Run(**subject, method=name, ways=n, shots=k, parameters={**values.get(name, {}), **pairs(set_)},
                  queries=q, query_distribution=distribution, alpha=a, episodes=episodes,
                  k_eff=k_eff if distribution == "k_eff" else None, open_classes=open_classes, open_queries=open_queries,
                  seed=seed, transforms=transforms, data_options=options)
              for name in words(method) for distribution in distributions for n in lists["ways"] for k in lists["shots"]
              for q in lists["queries"] for a in (lists["alpha"] if distribution == "dirichlet" else lists["alpha"][:1])]
    axis = _axis(lists, figure)
    if episode_file:
        wanted = list({run.method: run for run in wanted}.values())
    calibration = FeatureBank.load(calibration_features) if calibration_features else calibrate
    store, made = Store(runs), FeatureSource(data_root, runs / "cache", progress=True)
    store.prepare()
    results = [score(run, bank, base_bank=base_bank, store=store, progress=True, source=made, notes=notes, metrics=metrics,
                     calibrate=calibration, episodes_file=episode_file) for run in wanted]
    records = json.dumps([{"run": r.run.to_dict(), "key": r.run.key, **r.summary()} for r in results], indent=1)
    if json_file == Path("-"):
        typer.echo(records)
        return
    results_table(results).print()
    if metrics or calibration or open_classes:
        from fewshot.metric_tables import metrics_table

        metrics_table(results).print()
    if figure:
        from fewshot.figures import accuracy_against, save_figure

        shown = [r for r in results if axis != "alpha" or r.run.query_distribution == "dirichlet"]
        typer.echo(f"wrote {' and '.join(map(str, save_figure(accuracy_against(shown, axis), figure)))}")
    if json_file:
        typer.echo(f"wrote {write_atomically(json_file, records.encode())}")


for command in (result_commands.compare, result_commands.plan, result_commands.table, result_commands.report, commands.tune,
                commands.fit, commands_predict.predict):
    app.command()(command)
app.add_typer(episode_commands.app, name="episodes")


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


def _given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def _refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Options that would have no effect are refused."""
    flags = [_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in names if _given(context, name)]
    if flags:
        raise FewshotError(f"{', '.join(flags)} {why}; leave it out")


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


def _check_eval(context: typer.Context, features: Path | None, base_features: Path | None, k_eff: int | None,
                distributions: list[str]) -> None:
    """Options that would have no effect beside others are refused."""
    if features:
        _refuse_given(context, ("dataset", "split", "backbone", "weights", "data_set"),
                      "beside --features: the features know their data set and backbone")
    if base_features and not features:
        raise FewshotError("--base-features without --features: with a data set its own base classes are used")
    if k_eff is not None and "k_eff" not in distributions:
        raise FewshotError(f"--k-eff={k_eff} with --query-distribution={','.join(distributions)}; it belongs to k_eff")


def _check_alone(context: typer.Context, path: Path) -> None:
    """Beside a list of episodes, options that describe episodes would have no effect."""
    names = ("ways", "shots", "queries", "query_distribution", "alpha", "k_eff", "open_classes", "open_queries", "episodes",
             "seed")
    _refuse_given(context, names, f"beside --episode-file {path}: the file says so")


def _axis(lists: dict[str, list], figure: Path | None) -> str | None:
    """What the figure is drawn against: the list with several values (where several have: alpha, queries, shots, ways)."""
    several = [name for name, values in lists.items() if len(values) > 1]
    if figure and not several:
        raise FewshotError(f"--figure {figure}, but no list has several values; give e.g. --shots 1,5,10, --ways 5,10, "
                           "--queries 5,15 or --alpha 0.5,2,10")
    return next((name for name in ("alpha", "queries", "shots", "ways") if name in several), None)


def _learned(path: Path | None, methods: list[str]) -> dict[str, dict]:
    """Method -> parameters of the file that `fewshot fit` wrote."""
    if path is None:
        return {}
    from fewshot.fit import load_fitted

    found = load_fitted(path)
    if found.name not in methods:
        raise FewshotError(f"{path} holds values of {found.name}, which is not among the methods {', '.join(methods)}")
    return {found.name: found.parameters}


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
