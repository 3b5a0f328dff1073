"""The commands that label own images: `fewshot predict`, and `fewshot export` for other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import Values, options_from_types
from fewshot.cli.values import pairs
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.work import Work

if TYPE_CHECKING:
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
class Labelling(Features):
    """What is labelled with what."""

    low: float = setting(0.5, "mark answers with a probability below this", anything)
    out: Path = setting(Path("runs/predict"), "folder for predictions.csv and predictions.html", anything)


@options_from_types(left_out=("workers", "shard", "progress"), transforms="l2", device="auto")
def predict(support: Annotated[Path, typer.Option(help="folder with one folder of example images per class")],
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
    found = predict_folder(support, queries, method=spec["method"], parameters=pairs(spec["parameters"]),
                           backbone=labelling.backbone, weights=labelling.weights, transforms=spec["transforms"],
                           base_bank=base, progress=True, device=work["device"])
    written = found.save(labelling.out, labelling.low)
    print_answers(found, labelling.low)
    for path in written:
        typer.echo(f"wrote {path}")


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
    for file, name, probability in list(found)[:_LINES]:
        mark = " low" if probability < low else ""
        table.add_row(Text(file, overflow="fold"), Text(name), Text(f"{100 * probability:.1f} %{mark}"))
    console.print(table)
    if len(found) > _LINES:
        names = found.predicted
        counts = ", ".join(f"{name} {names.count(name)}" for name in found.class_names)
        console.print(Text(f"and {len(found) - _LINES} more images. In all: {counts}."))
    for line in (f"{found.description}, {found.setting}.", *found.notes):
        console.print(Text(line), style="dim")
