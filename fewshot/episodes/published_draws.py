"""Draws of training images that the vision-language literature published, as a list of episodes of protocol all_classes."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.data.banks import ImageBank
from fewshot.episodes.all_classes import TEST
from fewshot.episodes.protocol import AllClassesProtocol
from fewshot.episodes.sampler import EpisodeIndices, joined
from fewshot.episodes.saved import EpisodeList

_NAME = re.compile(r"shot_(\d+)[-_]seed_(\d+)\.json$")


def import_draws(path: str | Path, images: ImageBank, shots: int) -> EpisodeList:
    """The draws of `shots` images a class that are listed at `path`, one episode for each seed, in their order.

    path     folder or zip with files shot_K-seed_S.json, {"train": {"data": [[file, label, name], ...]}, "val": the same},
             as tools of CoOp's family keep them
    images   with `parts`, labels as published (caltech101 with protocol=zhou and split all)

    Queries are all test images, shuffled; the listed validation images come with the episodes.

    Raises FewshotError for a path without such files, files that name other images or other labels than the bank, and
    draws of different sizes.
    """
    if images.parts is None or images.files is None:
        raise FewshotError(f"{images.name}/{images.split} does not say which images are for training and test; load a data "
                           "set whose images are divided, with split all")
    named = ((_NAME.search(name), text) for name, text in _texts(Path(path)).items())
    found = {int(match[2]): text for match, text in named if match and int(match[1]) == shots}
    if len(found) < 2:
        raise FewshotError(f"{path} has {len(found)} files shot_{shots}-seed_*.json; an interval needs at least 2 draws")
    rows = {_end(file): row for row, file in enumerate(images.files)}
    draws = [_draw(f"shot_{shots}-seed_{seed}.json", found[seed], images, rows, number)
             for number, seed in enumerate(sorted(found))]
    sizes = {(draw.support.shape[1], draw.columns["validation"].shape[1]) for draw in draws}
    if len(sizes) > 1:
        raise FewshotError(f"the draws of {shots} shots at {path} list {sorted(sizes)} training and validation images; an "
                           "evaluation wants the same number in each")
    about = {"protocol": AllClassesProtocol.name, **AllClassesProtocol(shots=shots).settings(), "episodes": len(draws),
             "seed": 0}
    return EpisodeList(joined(draws), images.identity, about, images.name, images.split, len(images)).of(images)


def _texts(path: Path) -> dict[str, bytes]:
    """Name -> content of the JSON files of a folder or zip."""
    try:
        if path.is_dir():
            return {file.name: file.read_bytes() for file in sorted(path.glob("*.json"))}
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name.endswith(".json")}
    except (OSError, zipfile.BadZipFile) as error:
        raise FewshotError(f"{path} is neither a folder nor a zip of draws ({error})") from None


def _end(file: str) -> str:
    """Folder and name of a file, by which the lists name it."""
    return "/".join(file.split("/")[-2:])


def _draw(name: str, text: bytes, images: ImageBank, rows: dict[str, int], number: int) -> EpisodeIndices:
    try:
        lists: dict[str, Any] = {part: json.loads(text)[part]["data"] for part in ("train", "val")}
        listed = {part: [(str(file), int(label)) for file, label, _ in items] for part, items in lists.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise FewshotError(f"{name} is no list of draws ({error}); copy it again") from None
    place = {label: n for n, label in enumerate(images.classes.tolist())}
    for file, label in [item for items in listed.values() for item in items]:
        row = rows.get(_end(file))
        if row is None:
            raise FewshotError(f"{name} names {file}, which {images.name}/{images.split} does not have")
        if (known := int(images.labels[row])) != label:
            raise FewshotError(f"{name} gives {file} the label {label}, the data {known}; load the data with the published "
                               "labels")
    taken = {part: torch.tensor([rows[_end(file)] for file, _ in items])
             for part, items in listed.items()}
    taken["query"] = torch.nonzero(images.parts == TEST)[:, 0]  # type: ignore[arg-type]
    labels = {part: torch.tensor([place[label] for label in images.labels[found].tolist()])
              for part, found in taken.items()}
    by_class = labels["train"].argsort(stable=True)
    draw = torch.Generator().manual_seed(derived_seed("published draws", number))
    query, validation = (torch.randperm(len(taken[part]), generator=draw) for part in ("query", "val"))
    return EpisodeIndices(taken["train"][by_class][None], labels["train"][by_class][None], taken["query"][query][None],
                          labels["query"][query][None], images.classes[None], taken["val"][validation][None],
                          labels["val"][validation][None])
