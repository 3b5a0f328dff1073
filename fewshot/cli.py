"""The command line: `fewshot COMMAND`. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fewshot.errors import FewshotError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, suggest_commands=True,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Few-shot learning: episodes, methods, and accuracy with intervals.")

DataRoot = Annotated[Path | None, typer.Option("--data-root", envvar="FEWSHOT_DATA",
                                               help="folder that holds the data sets (default: data)")]
Dataset = Annotated[str, typer.Option(help="data set, see `fewshot data`; or a folder of class folders")]
Backbone = Annotated[str, typer.Option(help="backbone, see `fewshot list backbones`")]
Weights = Annotated[Path | None, typer.Option(help="weights file (.safetensors); untrained when left out")]
Runs = Annotated[Path, typer.Option("--runs", help="folder of stored results")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                                    help="a hyper-parameter of the method; repeat for more")]
DataSettings = Annotated[list[str] | None, typer.Option("--data-set", metavar="NAME=VALUE",
                                                        help="an option of the data set, e.g. protocol=vinyals")]


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
         dataset: Dataset = "glyphs", split: Annotated[str, typer.Option(help="train, val or test")] = "test"):
    """Every data set: present or missing, where, images, classes per split, licence, how to get it."""
    from fewshot import datasets

    if how is not None:
        typer.echo(datasets.instructions(how))
    elif sheet is not None:
        from fewshot.datasets.sheet import contact_sheet

        contact_sheet(_load(dataset, split, data_root)).save(sheet)
        typer.echo(f"wrote {sheet}")
    else:
        from rich.console import Console

        from fewshot.listing import data_listing

        Console().print(data_listing(data_root))


@app.command()
def train(dataset: Dataset = "glyphs", backbone: Backbone = "conv4",
          method: Annotated[str, typer.Option(help="differentiable method; its episodic loss is minimised")] = "protonet",
          out: Annotated[Path, typer.Option(help="folder of checkpoints, TensorBoard logs, weights")] = Path("runs/train"),
          ways: Annotated[int, typer.Option(help="classes of a training episode")] = 20,
          shots: Annotated[int, typer.Option(help="support images a class")] = 1,
          queries: Annotated[int, typer.Option(help="query images a class")] = 5,
          steps: Annotated[int, typer.Option(help="optimiser steps")] = 2000,
          lr: Annotated[float, typer.Option(help="learning rate")] = 1e-3,
          schedule: Annotated[str, typer.Option(help="constant, step or cosine")] = "cosine",
          seed: Annotated[int, typer.Option(help="seed of initial weights and episodes")] = 0,
          set_: Settings = None, data_set: DataSettings = None,
          config: Annotated[list[str] | None, typer.Option("--config", metavar="NAME=VALUE",
                                                           help="any other training setting, see TrainConfig")] = None,
          data_root: DataRoot = None):
    """Train a backbone episodically on the base classes; the same command resumes an interrupted run."""
    from fewshot.backbones import create_backbone, input_for
    from fewshot.training import TrainConfig
    from fewshot.training import train as run_training

    options = _pairs(data_set)
    settings = {"method": method, "parameters": _pairs(set_), "ways": ways, "shots": shots, "queries": queries,
                "steps": steps, "lr": lr, "schedule": schedule, "seed": seed, **_pairs(config)}
    training = TrainConfig.from_dict(settings)
    base, validation = (_load(dataset, split, data_root, **options) for split in ("train", "val"))
    network = create_backbone(backbone, **input_for(backbone, base.images), seed=seed)
    result = run_training(training, base, validation, network, out=out)
    typer.echo(result)


@app.command()
def embed(out: Annotated[Path, typer.Option(help="file to write (.safetensors)")], dataset: Dataset = "glyphs",
          split: Annotated[str, typer.Option(help="train, val, test or all")] = "test", backbone: Backbone = "conv4",
          weights: Weights = None, data_set: DataSettings = None, data_root: DataRoot = None,
          cache: Annotated[Path, typer.Option(help="folder for partial extractions")] = Path("runs/cache")):
    """Extract the features of one split once; an interrupted extraction continues."""
    from fewshot.embed import embed as extract
    from fewshot.pipeline import backbone_for
    from fewshot.run import Run

    images = _load(dataset, split, data_root, **_pairs(data_set))
    run = Run(dataset=dataset, backbone=backbone, weights=_text(weights))
    features = extract(images, backbone_for(run, images), cache=cache, progress=True)
    typer.echo(f"wrote {features.save(out)}: {len(features)} x {features.features.shape[1]}")


@app.command("eval")
def evaluate(dataset: Dataset = "glyphs", split: Annotated[str, typer.Option(help="split the episodes come from")] = "test",
             backbone: Backbone = "conv4", weights: Weights = None,
             features: Annotated[Path | None, typer.Option(help="feature bank from `fewshot embed`, not images")] = None,
             base_features: Annotated[Path | None, typer.Option(help="feature bank of the base classes")] = None,
             method: Annotated[str, typer.Option(help="methods, comma-separated; see `fewshot list methods`")] = "protonet",
             ways: Annotated[str, typer.Option(help="classes an episode, comma-separated")] = "5",
             shots: Annotated[str, typer.Option(help="support images a class, comma-separated")] = "1,5",
             queries: Annotated[int, typer.Option(help="query images a class")] = 15,
             query_distribution: Annotated[str, typer.Option(help="balanced, dirichlet, k_eff, natural; comma-separated")]
             = "balanced",
             alpha: Annotated[float, typer.Option(help="concentration of the Dirichlet distribution")] = 2.0,
             k_eff: Annotated[int | None, typer.Option(help="classes present among the queries (k_eff only)")] = None,
             episodes: Annotated[int, typer.Option(help="number of episodes")] = 10_000,
             seed: Annotated[int, typer.Option(help="seed of the episodes")] = 0,
             transforms: Annotated[str, typer.Option(help="feature transforms, e.g. center_base,l2")] = "",
             set_: Settings = None, data_set: DataSettings = None, data_root: DataRoot = None, runs: Runs = Path("runs"),
             json_file: Annotated[Path | None, typer.Option("--json", help="also write the results here")] = None):
    """Accuracy with 95 % intervals over episodes of cached features. Finished runs are not repeated."""
    from fewshot.banks import FeatureBank
    from fewshot.evaluate import evaluate as score
    from fewshot.files import write_atomically
    from fewshot.run import Run
    from fewshot.store import Store
    from fewshot.tables import results_table

    bank = FeatureBank.load(features) if features else None
    base_bank = FeatureBank.load(base_features) if base_features else None
    if bank is not None:
        dataset, split, backbone = bank.name, bank.split, bank.provenance.get("backbone", "features")
    wanted = [Run(dataset=dataset, split=split, backbone=backbone, weights=_text(weights), method=name, ways=n, shots=k,
                  parameters=_pairs(set_), queries=queries, query_distribution=distribution, alpha=alpha, episodes=episodes,
                  k_eff=k_eff if distribution == "k_eff" else None, seed=seed, transforms=transforms,
                  data_options=_pairs(data_set))
              for name in _split(method) for distribution in _split(query_distribution)
              for n in _integers("--ways", ways) for k in _integers("--shots", shots)]
    results = [score(run, bank, base_bank=base_bank, store=Store(runs), progress=True, root=data_root,
                     cache=runs / "cache") for run in wanted]
    results_table(results).print()
    if json_file:
        records = [{"run": r.run.to_dict(), "key": r.run.key, **r.summary()} for r in results]
        write_atomically(json_file, json.dumps(records, indent=1).encode())
        typer.echo(f"wrote {json_file}")


@app.command()
def compare(results: Annotated[list[str], typer.Argument(help="two or more result folders or keys")],
            runs: Runs = Path("runs")):
    """Paired differences between results on the same episodes."""
    from fewshot.tables import comparison_table

    comparison_table(_results(results, runs, least=2)).print()


@app.command()
def table(results: Annotated[list[str] | None, typer.Argument(help="result folders or keys; default: all")] = None,
          runs: Runs = Path("runs"),
          form: Annotated[str, typer.Option("--format", help="terminal, markdown, csv or latex")] = "terminal"):
    """One table of stored results."""
    from fewshot.registry import unknown_message
    from fewshot.tables import results_table

    made = results_table(_results(results, runs))
    forms = {"terminal": made.print, "markdown": lambda: typer.echo(made.to_markdown()),
             "csv": lambda: typer.echo(made.to_csv()), "latex": lambda: typer.echo(made.to_latex())}
    if form not in forms:
        raise FewshotError(unknown_message("format", form, list(forms)))
    forms[form]()


@app.command()
def report(results: Annotated[list[str] | None, typer.Argument(help="result folders or keys; default: all")] = None,
           runs: Runs = Path("runs"), out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
           title: Annotated[str, typer.Option(help="heading of the page")] = "Few-shot results"):
    """One self-contained HTML page of stored results."""
    from fewshot.figures import accuracy_against_shots
    from fewshot.report import write_report

    found = _results(results, runs)
    figures = {}
    if len({r.run.shots for r in found}) > 1:
        figures["shots"] = (accuracy_against_shots(found), "Accuracy against shots.")
    typer.echo(f"wrote {write_report(out, title=title, results=found, figures=figures)}")


def main() -> None:
    """Entry point: a mistake of the user is one line on stderr, not a traceback."""
    try:
        app()
    except FewshotError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


def _load(dataset: str, split: str, root, **options):
    from fewshot.datasets import load_dataset

    return load_dataset(dataset, split, root=root, **options)


def _results(keys: list[str] | None, runs: Path, least: int = 1):
    from fewshot.store import Store

    store = Store(runs)
    found = [store.read(key if Path(key).is_dir() else runs / key) for key in keys or []] or list(store)
    if len(found) < least:
        raise FewshotError(f"{len(found)} results in {runs}; this needs at least {least}: run `fewshot eval` first, or "
                           "point --runs at the folder that holds them")
    return found


def _pairs(items: list[str] | None) -> dict:
    """`["temperature=10", "norm=l2n"]` -> {"temperature": 10, "norm": "l2n"}."""
    values = {}
    for item in items or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise FewshotError(f"{item!r} is not NAME=VALUE")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _split(text)]
    except ValueError:
        raise FewshotError(f"{option}={text!r}; expected integers separated by commas, e.g. 1,5") from None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
