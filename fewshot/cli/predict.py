"""The command that labels own images: `fewshot predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import BaseFeatures, Method, Settings, Weights, pairs

_LINES = 20  # of the printed table; the CSV file has all


def predict(support: Annotated[Path, typer.Option(help="folder with one folder of example images per class")],
            queries: Annotated[Path, typer.Option(help="folder of images to label, at any depth; or one image")],
            backbone: Annotated[str | None, typer.Option(help="backbone; left out: the one that --weights belong to, else "
                                                         "efficientnet_lite0 with ImageNet weights")] = None,
            method: Method = "protonet", weights: Weights = None,
            transforms: Annotated[str, typer.Option(help="feature transforms before the method; '' for none")] = "l2",
            set_: Settings = None, base_features: BaseFeatures = None,
            low: Annotated[float, typer.Option(min=0, max=1, help="mark answers with a probability below this")] = 0.5,
            out: Annotated[Path, typer.Option(help="folder for predictions.csv and predictions.html")]
            = Path("runs/predict")):
    """Label own images from a few examples of each class: a table, a CSV file and an HTML contact sheet.

    protonet takes temperature=0.1 here unless --set says otherwise: with its own 1, all probabilities are nearly equal.
    """
    from fewshot.data.banks import FeatureBank
    from fewshot.labelling.predict import predict_folder

    base = FeatureBank.load(base_features) if base_features else None
    found = predict_folder(support, queries, method=method, parameters=pairs(set_), backbone=backbone, weights=weights,
                           transforms=transforms, base_bank=base, progress=True)
    written = found.save(out, low)
    _print(found, low)
    for path in written:
        typer.echo(f"wrote {path}")


def _print(found, low: float) -> None:
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
