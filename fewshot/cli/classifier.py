"""`fewshot classifier`: a classifier of own images that is kept in a file, asked, corrected and extended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import Values, given, options_from_types
from fewshot.cli.predict import Deciding, Labelling, decisions_of, print_answers
from fewshot.cli.values import pairs
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.work import Work

if TYPE_CHECKING:
    from fewshot.labelling.classifier import Classifier
    from fewshot.labelling.contents import Contents

app = typer.Typer(help="A classifier of own images in a file: made from a few examples, asked, corrected, extended.",
                  no_args_is_help=True)
_WORK = ("workers", "shard", "progress")

File = Annotated[Path, typer.Argument(help="the classifier (.safetensors)")]


@dataclass
class Network:
    """What stands outside the file."""

    weights: Path | None = setting(None, "weights file of its backbone, where they do not come with a package", anything)


@dataclass
class Asked(Deciding):
    """What becomes of answers."""

    low: float = setting(0.5, "mark answers with a probability below this", anything)
    out: Path = setting(Path("runs/review"), "folder for predictions.csv, review.html and corrections.csv", anything)


@app.command()
@options_from_types(left_out=(*_WORK, "coverage", "low", "out"), transforms="l2", device="auto")
def create(file: File, support: Annotated[Path, typer.Option(help="folder with one folder of example images per class")],
           spec: Values[MethodSpec], labelling: Labelling, work: Values[Work]) -> None:
    """Make a classifier from a few examples of each class. Settings are those of `fewshot predict`."""
    from fewshot.data.banks import FeatureBank
    from fewshot.evaluation.decisions import Decisions
    from fewshot.labelling.classifier import Classifier

    if file.exists():
        raise FewshotError(f"{file} exists; extend it with `fewshot classifier add`, or choose another name for a new "
                           "classifier")
    base = FeatureBank.load(labelling.base_features) if labelling.base_features else None
    decisions = Decisions.load(labelling.decisions) if labelling.decisions else None
    _save(Classifier.from_folder(
        support, labelling.backbone, weights=labelling.weights, method=spec["method"], parameters=pairs(spec["parameters"]),
        transforms=spec["transforms"], base_bank=base, decisions=decisions, device=work["device"],
        progress=True), file)


@app.command()
@options_from_types(left_out=_WORK, device="auto")
def add(file: File, images: Annotated[list[Path], typer.Argument(help="images, and folders of images")], network: Network,
        work: Values[Work], to: Annotated[str | None, typer.Option("--class", help="class that they belong to")] = None,
        new: Annotated[str | None, typer.Option("--new-class", help="class to begin with them")] = None) -> None:
    """Add images to a class, or a class."""
    if (to is None) == (new is None):
        raise FewshotError("give either --class, one that there is, or --new-class")
    found = _load(file, network, work)
    if new is not None:
        found.add_class(new, images)
    elif to is not None:
        found.add_images(to, images)
    _save(found, file)


@app.command()
def remove(file: File,
           name: Annotated[list[str] | None, typer.Option("--class", help="class to forget; repeat for more")] = None,
           image: Annotated[list[str] | None, typer.Option(help="image to forget, as `show --images` names it, or the "
                                                           "beginning of its hash; repeat for more")] = None) -> None:
    """Forget classes or images. Needs no network."""
    from fewshot.labelling.contents import Contents

    if not name and not image:
        raise FewshotError("nothing to forget; give --class or --image")
    found = Contents.read(file)
    for one in name or []:
        found = found.without_class(one)
    found = found.without_images(image or [])
    found.write(file)
    _tell(found, file)


@app.command()
@options_from_types(left_out=_WORK, device="auto")
def correct(file: File, corrections: Annotated[Path, typer.Argument(help="CSV file saved from review.html, or filled in")],
            network: Network, work: Values[Work],
            images: Annotated[Path | None, typer.Option(help="folder that its images lie below; left out: the one that was "
                                                        "labelled")] = None) -> None:
    """Learn from corrections: each image becomes an example of the class that it was given."""
    found = _load(file, network, work)
    found.correct(corrections, images)
    _save(found, file)


@app.command()
@options_from_types(left_out=_WORK, device="auto")
def predict(context: typer.Context, file: File,
            images: Annotated[Path, typer.Argument(help="folder of images to label, or one image")],
            asked: Asked, network: Network, work: Values[Work]) -> None:
    """Label images: a table, and a page of all, the least certain first, where corrections are picked.

    By the decisions that the classifier holds; --decisions takes others, and --coverage sets from the support instead.
    """
    if not 0 <= asked.low <= 1:
        raise FewshotError(f"--low={asked.low}; a probability lies between 0 and 1")
    kept = asked.decisions is None and not given(context, "coverage")
    chosen = None if kept else decisions_of(context, asked.decisions, asked.coverage)
    found = _load(file, network, work).predict(images, decisions=chosen)
    written = found.save(asked.out, asked.low)
    print_answers(found, asked.low)
    for path in written:
        typer.echo(f"wrote {path}")


@app.command()
def decisions(file: File, chosen: Annotated[Path | None, typer.Argument(help="file of `fewshot decide`")] = None,
              forget: Annotated[bool, typer.Option("--forget", help="keep none any more")] = False) -> None:
    """Keep thresholds and the temperature of `fewshot decide` in a classifier; predict follows them. Needs no network."""
    from fewshot.evaluation.decisions import Decisions
    from fewshot.labelling.contents import Contents

    if (chosen is None) != forget:
        raise FewshotError("give either a file of `fewshot decide`, or --forget")
    found = Contents.read(file).deciding(Decisions.load(chosen) if chosen else None)
    found.write(file)
    _tell(found, file)


@app.command()
def show(file: File,
         images: Annotated[bool, typer.Option("--images", help="name every image, with its hash")] = False) -> None:
    """What a classifier knows. Needs no network."""
    from fewshot.labelling.contents import Contents
    from fewshot.reporting.naming import parameter_text

    found = Contents.read(file)
    spec, backbone = found.spec, found.backbone
    typer.echo(f"{spec.method} ({parameter_text(spec.parameters)}), transforms {spec.transforms or 'none'}")
    typer.echo(f"backbone {backbone['backbone']}, weights {backbone['weights_id']}, images of {found.image_size} pixels")
    if found.decisions is not None:
        typer.echo(f"decisions {found.decisions.describe()}")
    for name, count in found.class_sizes.items():
        typer.echo(f"{name}: {count}")
        for example in sorted(found.examples, key=lambda example: example.file) if images else ():
            if example.name == name:
                typer.echo(f"  {example.file}  {example.sha256[:12]}")


def _load(file: Path, network: Network, work: Values[Work]) -> Classifier:
    from fewshot.labelling.classifier import Classifier

    return Classifier.load(file, weights=network.weights, device=work["device"], progress=True)


def _save(found: Classifier, file: Path) -> None:
    found.save(file)
    _tell(found, file)


def _tell(found: Classifier | Contents, file: Path) -> None:
    sizes = found.class_sizes
    listed = ", ".join(f"{name} {count}" for name, count in sizes.items())
    typer.echo(f"wrote {file}: {len(sizes)} classes, {sum(sizes.values())} images ({listed})"
               + (f"; decisions of {found.decisions.origin}" if found.decisions else ""))
