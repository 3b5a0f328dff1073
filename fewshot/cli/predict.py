"""The commands that label own images: `fewshot predict`, `fewshot decide`, which chooses its thresholds before, and `fewshot
export` for other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import Values, options_from_types, refuse_given
from fewshot.cli.request import Banks, Places, data_of, one_run
from fewshot.cli.values import pairs
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.episodes.protocol import Protocol
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.run import Run
from fewshot.evaluation.work import Work
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.evaluation.decisions import Decisions
    from fewshot.labelling.answers import Answers

_LINES = 20  # of the printed table; the CSV file has all


@dataclass
class Features:
    """What makes the features."""

    backbone: str | None = setting(None, "backbone; left out: the one that --weights belong to, else efficientnet_lite0 "
                                   "with ImageNet weights", anything)
    weights: Path | None = setting(None, "weights file (.safetensors) or a name such as random", anything)
    base_features: Path | None = setting(None, "feature bank of the base classes", anything)


@dataclass
class Deciding:
    """What is said beside the most probable class."""

    decisions: Path | None = setting(None, "values chosen by `fewshot decide`: sets, calibrated probabilities, unknown",
                                     anything)
    coverage: float = setting(0.9, "without --decisions: the rate at which sets from the support hold the true class",
                              anything)


@dataclass
class Labelling(Deciding, Features):
    """What is labelled with what."""

    low: float = setting(0.5, "mark answers with a probability below this", anything)
    out: Path = setting(Path("runs/predict"), "folder for predictions.csv and predictions.html", anything)


@options_from_types(left_out=("workers", "shard", "progress"), transforms="l2", device="auto")
def predict(context: typer.Context,
            support: Annotated[Path, typer.Option(help="folder with one folder of example images per class")],
            queries: Annotated[Path, typer.Option(help="folder of images to label, at any depth; or one image")],
            spec: Values[MethodSpec], labelling: Labelling, work: Values[Work]) -> None:
    """Label own images from a few examples of each class: a table, a CSV file and an HTML contact sheet.

    protonet takes temperature=0.1 here unless --set says otherwise: with its own 1, all probabilities are nearly equal.
    Transductive methods learn from all images together and need about 5 a class; nothing supposes them to be balanced.
    """
    from fewshot.data.banks import FeatureBank
    from fewshot.labelling.predict import predict_folder

    if not 0 <= labelling.low <= 1:
        raise FewshotError(f"--low={labelling.low}; a probability lies between 0 and 1")
    base = FeatureBank.load(labelling.base_features) if labelling.base_features else None
    decisions = decisions_of(context, labelling.decisions, labelling.coverage)
    found = predict_folder(support, queries, method=spec["method"], parameters=pairs(spec["parameters"]),
                           backbone=labelling.backbone, weights=labelling.weights, transforms=spec["transforms"],
                           base_bank=base, decisions=decisions, progress=True, device=work["device"])
    written = found.save(labelling.out, labelling.low)
    print_answers(found, labelling.low)
    for path in written:
        typer.echo(f"wrote {path}")


def decisions_of(context: typer.Context, path: Path | None, coverage: float) -> Decisions | float:
    """What --decisions and --coverage say."""
    from fewshot.evaluation.decisions import Decisions

    if path is None:
        return coverage
    refuse_given(context, ("coverage",), f"beside --decisions {path}: the file says so")
    return Decisions.load(path)


@dataclass
class Rates:
    """What decisions are to keep to."""

    coverage: float = setting(0.9, "rate at which sets are to hold the true class", anything)
    keep: float = setting(0.95, "share of images of the classes that are not to be called unknown, at least", anything)
    out: Path = setting(Path("runs/decisions.json"), "file to write", anything)


@options_from_types(left_out=("workers", "shard", "progress", "open_classes", "open_queries", "episodes", "split"),
                    transforms="l2", device="auto")
def decide(context: typer.Context, spec: Values[MethodSpec], subject: Values[Subject], banks: Banks,
           protocol: Values[Protocol], run: Values[Run], rates: Rates, work: Values[Work], places: Places) -> None:
    """Choose on 500 validation episodes the thresholds and the temperature that `fewshot predict --decisions FILE` uses.

    Ways and shots should be those of the images to label. Methods have the hyper-parameters that `fewshot predict` gives
    them: protonet temperature=0.1, and a prior of the queries is "unknown".
    """
    from fewshot.core.files import check_file_to_write
    from fewshot.evaluation.calibration import choose_decisions
    from fewshot.labelling.predict import own_parameters

    check_file_to_write(rates.out)
    data = data_of(context, subject, banks, places)
    asked = one_run(context, data, spec, protocol, run)
    asked = asked.changed(parameters=own_parameters(asked.method, pairs(spec["parameters"])))
    found = choose_decisions(asked, data.bank, data.base_bank, coverage=rates.coverage, keep=rates.keep, root=data.root,
                             cache=places.runs / "cache", progress=True, **work)
    typer.echo(found.describe())
    typer.echo(f"wrote {found.save(rates.out)}")


@dataclass
class Exporting(Features):
    """What is written where."""

    out: Path = setting(Path("runs/export"), "folder for model.onnx and classify.py", anything)


@options_from_types(transforms="l2")
def export(support: Annotated[Path, typer.Option(help="folder with one folder of example images per class")],
           spec: Values[MethodSpec], exporting: Exporting) -> None:
    """Write what predict would label images with as a file for ONNX Runtime, and a program that labels images with it.

    The program needs onnxruntime, numpy and pillow alone. Methods that answer each image alone can be written: protonet,
    simple_shot, ridge, logistic_regression, nearest_neighbour.
    """
    from fewshot.data.banks import FeatureBank
    from fewshot.labelling.export import export_onnx

    base = FeatureBank.load(exporting.base_features) if exporting.base_features else None
    made = export_onnx(support, exporting.out, method=spec["method"], parameters=pairs(spec["parameters"]),
                       backbone=exporting.backbone, weights=exporting.weights, transforms=spec["transforms"], base_bank=base)
    typer.echo(f"{made.description}: probabilities differ from predict's by at most {made.difference:.1e}.")
    for path in (made.model, made.runner):
        typer.echo(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def print_answers(found: Answers, low: float) -> None:
    """The first answers as a table, and what a reader must know of all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("file", "predicted")
    table.add_column("probability", justify="right")
    with_sets = len(found) > 0 and found.set_of(0) is not None
    if with_sets:
        table.add_column("set")
    for row, (file, name, probability) in enumerate(list(found)[:_LINES]):
        mark = (" low" if probability < low else "") + (" unknown" if found.is_unknown(row) else "")
        members = [Text(", ".join(found.set_of(row) or ()))] if with_sets else []
        table.add_row(Text(file, overflow="fold"), Text(name), Text(f"{100 * probability:.1f} %{mark}"), *members)
    console.print(table)
    if len(found) > _LINES:
        names = found.predicted
        counts = ", ".join(f"{name} {names.count(name)}" for name in found.class_names)
        console.print(Text(f"and {len(found) - _LINES} more images. In all: {counts}."))
    for line in (f"{found.description}, {found.setting}.", *found.notes):
        console.print(Text(line), style="dim")
