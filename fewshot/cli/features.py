"""From images to files of features: `fewshot embed` and `fewshot join`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import Values, options_from_types
from fewshot.cli.request import Places, images_of, say_what_is_there
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.evaluation.work import Work
from fewshot.features.subject import Subject


@dataclass
class Extraction:
    """How features are extracted."""

    precision: str = setting("float32", "of the backbone's arithmetic: float32, or bfloat16, which is faster and less "
                             "accurate; the features are then others", anything)
    cache: Path = setting(Path("runs/cache"), "folder for partial extractions", anything)
    templates: str | None = setting(None, "also read the class names, put into these sentences, with the text tower of the "
                                    "backbone: imagenet (OpenAI's 80), imagenet7, a file with one a line, or one such as "
                                    "'a photo of a {}.'", anything)
    descriptions: Path | None = setting(None, "also read descriptions of the classes: a JSON file of class -> sentences",
                                        anything)


@options_from_types(left_out=("runs", "workers", "shard", "progress"), split=None, device="auto")
def embed(context: typer.Context, out: Annotated[Path, typer.Option(help="file to write (.safetensors)")],
          subject: Values[Subject], extraction: Extraction, work: Values[Work], places: Places) -> None:
    """Extract the features of one split once; an interrupted extraction continues. With --templates or --descriptions the
    file holds texts of the classes, too."""
    from fewshot.core.files import check_file_to_write
    from fewshot.core.team import own_device
    from fewshot.datasets import load_dataset
    from fewshot.features.class_prompts import class_texts
    from fewshot.features.extract import embed as extract
    from fewshot.features.source import backbone_for

    check_file_to_write(out)
    found, root = images_of(subject, places.data_root)
    asked = Subject(**found)
    images = load_dataset(asked.dataset, asked.split, root=root, **asked.data_options)
    say_what_is_there(context, [images])
    backbone, texts = backbone_for(asked, images), None
    if extraction.templates is not None or extraction.descriptions is not None:
        if asked.crops.startswith("keep"):
            raise FewshotError(f"--crops {asked.crops} puts features side by side, which have no texts of that length; take "
                               "mean(...), or leave --crops out")
        texts = class_texts(backbone, images.class_names, extraction.templates, extraction.descriptions)
    features = extract(images, backbone, cache=extraction.cache, progress=True, crops=asked.crops,
                       precision=extraction.precision, device=own_device(work["device"]))
    if texts is not None:
        features = features.with_texts(texts)
    read = "" if texts is None else f", and texts of {len(texts)} classes from {sum(map(len, texts.prompts))} sentences"
    typer.echo(f"wrote {features.save(out)}: {len(features)} x {features.features.shape[1]}{read}")


def join(features: Annotated[list[Path], typer.Argument(help="feature banks of the same images, from `fewshot embed`")],
         out: Annotated[Path, typer.Option(help="file to write (.safetensors)")]) -> None:
    """Put the features of several backbones side by side: an ensemble, for `fewshot eval --features`."""
    from fewshot.data.banks import FeatureBank, concatenate

    joined = concatenate([FeatureBank.load(path) for path in features])
    typer.echo(f"wrote {joined.save(out)}: {len(joined)} x {joined.features.shape[1]}")
