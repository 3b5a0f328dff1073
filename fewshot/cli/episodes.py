"""`fewshot episodes`: save a list of episodes to a file, import one from text, and say what such a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import Values, options_from_types
from fewshot.cli.request import Banks, Places, data_of, images_of, protocol_of
from fewshot.episodes.protocol import Protocol, read_protocol
from fewshot.evaluation.run import Run, on_dataset
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank, ImageBank

app = typer.Typer(help="Lists of episodes as files, to be evaluated elsewhere on the same data.", no_args_is_help=True)


@app.command()
@options_from_types(left_out=("backbone", "weights", "crops", "backbone_options", "base_features", "runs"), split=None)
def save(context: typer.Context, out: Annotated[Path, typer.Option(help="file to write (.safetensors)")],
         subject: Values[Subject], banks: Banks, protocol: Values[Protocol], run: Values[Run], places: Places) -> None:
    """Draw episodes once and keep their row numbers; `fewshot eval --episode-file` evaluates them."""
    from fewshot.core.files import check_file_to_write

    check_file_to_write(out)
    bank = _bank_of(context, subject, banks, places)
    found = Run(protocol=on_dataset(protocol_of(context, protocol), bank.name), **run).drawn(bank)
    typer.echo(f"wrote {found.save(out)}: {len(found)} episodes, fingerprint {found.fingerprint}")


@app.command("import")
@options_from_types(left_out=("backbone", "weights", "crops", "backbone_options", "base_features", "runs"), split=None)
def import_list(context: typer.Context, path: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSON")],
                out: Annotated[Path, typer.Option(help="file to write (.safetensors)")],
                subject: Values[Subject], banks: Banks, places: Places) -> None:
    """Make a list of episodes from one that was published as text.

    CSV with the columns episode, role (support or query) and item, or JSON: [{"support": [...], "query": [...]}, ...]. An
    item is a row number of the data, or the path of an image.
    """
    from fewshot.core.files import check_file_to_write
    from fewshot.episodes.imported import import_episodes

    check_file_to_write(out)
    found = import_episodes(path, _bank_of(context, subject, banks, places))
    typer.echo(f"wrote {found.save(out)}: {len(found)} episodes, {read_protocol(found.described)}, fingerprint "
               f"{found.fingerprint}")


@app.command()
@options_from_types(left_out=("backbone", "weights", "crops", "backbone_options", "runs"), split="all")
def draws(path: Annotated[Path, typer.Argument(metavar="PLACE", help="folder or zip with files shot_K-seed_S.json")],
          out: Annotated[Path, typer.Option(help="file to write (.safetensors)")], subject: Values[Subject], places: Places,
          shots: Annotated[int, typer.Option(min=1, help="training images a class")] = 1) -> None:
    """Make a list of episodes from published draws of training images (protocol all_classes).

    The data are those with the published labels, for example --dataset caltech101 --data-option protocol=zhou.
    """
    from fewshot.core.files import check_file_to_write
    from fewshot.datasets import load_dataset
    from fewshot.episodes.published_draws import import_draws

    check_file_to_write(out)
    asked, root = images_of(subject, places.data_root)
    images = load_dataset(asked["dataset"], asked["split"], root=root, **asked["data_options"])
    found = import_draws(path, images, shots)
    typer.echo(f"wrote {found.save(out)}: {len(found)} draws, {read_protocol(found.described)}, fingerprint "
               f"{found.fingerprint}")


def _bank_of(context: typer.Context, subject: Values[Subject], banks: Banks, places: Places) -> ImageBank | FeatureBank:
    from fewshot.datasets import load_dataset

    data = data_of(context, subject, banks, places)
    return data.bank or load_dataset(data.subject["dataset"], data.subject["split"], root=data.root,
                                     **data.subject["data_options"])


@app.command()
def show(path: Annotated[Path, typer.Argument(help="a file written by `fewshot episodes save` or `import`")]) -> None:
    """What a file of episodes holds, and which data it belongs to."""
    from fewshot.core.settings import settings_of
    from fewshot.episodes.saved import EpisodeList

    found = EpisodeList.load(path)
    typer.echo(f"{len(found)} episodes of {found.name}, split {found.split} ({found.items} items)")
    outside = {name: found.protocol[name] for name in ("episodes", "seed")}
    protocol = read_protocol(found.described)
    used = {name: value for name, value in protocol.settings().items()
            if value and not settings_of(protocol)[name].unused(protocol)}
    typer.echo(", ".join(f"{name} {value}" for name, value in {**used, **outside}.items()))
    typer.echo(f"data identity {found.identity}")
    typer.echo(f"fingerprint {found.fingerprint}")
