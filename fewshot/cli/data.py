"""What there is: `fewshot list` and `fewshot data`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import Values, options_from_types, refuse_given
from fewshot.cli.request import Places, images_of
from fewshot.core.errors import FewshotError
from fewshot.features.subject import Subject

KINDS = ("methods", "backbones", "datasets", "protocols")


def list_names(kind: Annotated[str, typer.Argument(help=f"{', '.join(KINDS)} or all")] = "all") -> None:
    """Names that can be used for methods, backbones, data sets and protocols."""
    from rich.console import Console

    from fewshot.cli.listing import listing
    from fewshot.core.registry import unknown_message

    if kind not in (*KINDS, "all"):
        raise FewshotError(unknown_message("kind of name", kind, [*KINDS, "all"]))
    for table in listing(KINDS if kind == "all" else (kind,)):
        Console().print(table)


@options_from_types(left_out=("backbone", "weights", "crops", "backbone_options", "runs"), split=None)
def data(context: typer.Context, subject: Values[Subject], places: Places,
         how: Annotated[str | None, typer.Option(help="print how to get this data set")] = None,
         sheet: Annotated[Path | None, typer.Option(help="draw a contact sheet (PNG) of --dataset's --split here")] = None
         ) -> None:
    """Every data set: present or missing, where, images, classes per split, licence, how to get it."""
    from fewshot import datasets

    if sheet is None:
        refuse_given(context, subject, "without --sheet, which draws it")
    if how is not None:
        typer.echo(datasets.instructions(how, places.data_root))
    elif sheet is not None:
        from fewshot.core.files import check_file_to_write, write_atomically

        check_file_to_write(sheet)
        found, root = images_of(subject, places.data_root)
        images = datasets.load_dataset(found["dataset"], found["split"], root=root, **found["data_options"])
        picture = io.BytesIO()
        datasets.contact_sheet(images).save(picture, "PNG")
        typer.echo(f"wrote {write_atomically(sheet, picture.getvalue())}")
    else:
        from rich.console import Console

        from fewshot.cli.listing import data_listing

        Console().print(data_listing(places.data_root))
