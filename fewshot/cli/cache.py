"""`fewshot cache`: what is kept to be quick, and away with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import options_from_types
from fewshot.cli.request import Places


@options_from_types(left_out=("data_root",))
def cache(clear: Annotated[bool, typer.Option("--clear", help="remove the decoded images")] = False,
          clear_features: Annotated[bool, typer.Option("--clear-features", help="remove the extracted features in "
                                                       "RUNS/cache")] = False, *, places: Places) -> None:
    """Decoded images and extracted features: where, how much, and away with them. Nothing is lost but the time to make them
    again."""
    from fewshot.datasets import cache as images

    folder, features = images.default_folder(), places.runs / "cache"
    if clear:
        typer.echo(f"removed {_amount(images.clear(folder))} of decoded images")
    if clear_features:
        typer.echo(f"removed {_amount(_remove(features))} of features")
    held = images.files_in(folder)
    typer.echo(f"decoded images  {folder}: {len(held)} files, {_amount(sum(size for _, size in held))} of at most "
               f"{_amount(images.bound())}")
    kept = [path.stat().st_size for path in _feature_files(features)]
    typer.echo(f"features        {features}: {len(kept)} files, {_amount(sum(kept))}, not bounded")


def _feature_files(folder: Path) -> list[Path]:
    """Banks, their seals, and the pieces of extractions that did not end."""
    return sorted(path for pattern in ("*.safetensors", "*.safetensors.checked", "*.partial/*.safetensors", "*.tmp",
                                       "*.partial/*.tmp") for path in folder.glob(pattern))


def _remove(folder: Path) -> int:
    removed = 0
    for path in _feature_files(folder):
        removed += path.stat().st_size
        path.unlink()
    for empty in folder.glob("*.partial"):
        if not any(empty.iterdir()):
            empty.rmdir()
    return removed


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
