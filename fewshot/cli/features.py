"""From images to files of features: `fewshot embed` and `fewshot join`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import Values, options_from_types, refuse_given
from fewshot.cli.request import Places, images_of, say_what_is_there
from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.evaluation.work import Work
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.backbones import Backbone
    from fewshot.data.class_texts import ClassTexts
    from fewshot.features.name_tower import NameTower


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
    words: Path | None = setting(None, "what to call classes in the templates: a JSON file of class -> its words", anything)
    text_space: str = setting("joint", "for a backbone without a text tower: joint, its features and names side by side; or "
                              "scores, those of the classes that it knows, for conse and loki", anything)
    base_features: Path | None = setting(None, "for joint: bank of base images whose mean is subtracted (default: the split "
                                         "train of the data set)", anything)


@options_from_types(left_out=("runs", "workers", "shard", "progress"), split=None, device="auto")
def embed(context: typer.Context, out: Annotated[Path, typer.Option(help="file to write (.safetensors)")],
          subject: Values[Subject], extraction: Extraction, work: Values[Work], places: Places) -> None:
    """Extract the features of one split once; an interrupted extraction continues. With --templates or --descriptions the
    file holds texts of the classes, too: by the text tower of the backbone, or, of efficientnet_lite0 and models of timm, by
    the names of the classes that it knows."""
    from fewshot.core.files import check_file_to_write
    from fewshot.core.team import own_device
    from fewshot.data.banks import FeatureBank
    from fewshot.datasets import load_dataset
    from fewshot.features.extract import embed as extract
    from fewshot.features.source import backbone_for

    check_file_to_write(out)
    found, root = images_of(subject, places.data_root)
    asked = Subject(**found)
    images = load_dataset(asked.dataset, asked.split, root=root, **asked.data_options)
    say_what_is_there(context, [images])
    backbone = backbone_for(asked, images)
    texts, tower = _read_names(context, backbone, asked, extraction, images.class_names)
    extracted = functools.partial(extract, backbone=backbone, cache=extraction.cache, progress=True, crops=asked.crops,
                                  precision=extraction.precision, device=own_device(work["device"]))
    base = None
    if tower is not None and extraction.text_space == "joint":
        if extraction.base_features is not None:
            base = FeatureBank.load(extraction.base_features)
        elif asked.split == "train":
            base = extracted(images)
        else:
            try:
                base = extracted(load_dataset(asked.dataset, "train", root=root, **asked.data_options))
            except FewshotError as error:
                raise FewshotError("names are matched to features minus the mean of base images; give such as "
                                   f"--base-features, as the split train cannot be had ({error})") from None
        say_what_is_there(context, [base])
    features = extracted(images)
    if tower is not None:
        features = tower.scores(features) if base is None else tower.joint(features, base)
    elif texts is not None:
        features = features.with_texts(texts)
    read = "" if features.texts is None else (f", and texts of {len(features.texts)} classes from "
                                              f"{sum(map(len, features.texts.prompts))} sentences")
    typer.echo(f"wrote {features.save(out)}: {len(features)} x {features.features.shape[1]}{read}")


def _read_names(context: typer.Context, backbone: Backbone, asked: Subject, extraction: Extraction,
                class_names: Sequence[str]) -> tuple[ClassTexts | None, NameTower | None]:
    """The names of classes as the text tower of the backbone reads them, or a tower by the classes that it knows; neither
    where nothing was asked for. Raises FewshotError for options that would have no effect."""
    from fewshot.backbones.two_towers import TwoTowers
    from fewshot.features.class_prompts import class_texts
    from fewshot.features.name_tower import name_tower

    check_choice(("joint", "scores"), text_space=extraction.text_space)
    if extraction.templates is None and extraction.descriptions is None:
        refuse_given(context, ("words", "text_space", "base_features"), "without --templates or --descriptions")
        return None, None
    if asked.crops.startswith("keep"):
        raise FewshotError(f"--crops {asked.crops} puts features side by side, which have no texts of that length; take "
                           "mean(...), or leave --crops out")
    names = class_names, extraction.templates, extraction.descriptions, extraction.words
    if isinstance(backbone, TwoTowers):
        refuse_given(context, ("text_space", "base_features"), f"beside {asked.backbone}, which has a text tower")
        return class_texts(backbone, *names), None
    if extraction.text_space == "scores":
        refuse_given(context, ("base_features",), "beside --text-space scores, which subtracts no mean")
    return None, name_tower(backbone, *names)


def join(features: Annotated[list[Path], typer.Argument(help="feature banks of the same images, from `fewshot embed`")],
         out: Annotated[Path, typer.Option(help="file to write (.safetensors)")]) -> None:
    """Put the features of several backbones side by side: an ensemble, for `fewshot eval --features`."""
    from fewshot.data.banks import FeatureBank, concatenate

    joined = concatenate([FeatureBank.load(path) for path in features])
    typer.echo(f"wrote {joined.save(out)}: {len(joined)} x {joined.features.shape[1]}")
