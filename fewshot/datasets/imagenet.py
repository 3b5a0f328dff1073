"""miniImageNet and tieredImageNet: subsets of ImageNet with published class splits."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fewshot.core.errors import FewshotError
from fewshot.datasets.base import DATASETS, SPLITS, classes_of, read_splits
from fewshot.datasets.files import Download, Tree, open_tree
from fewshot.datasets.images import ImageFiles, Listing, need_classes

_WNID = re.compile(r"n\d{8}")


class _ImageNetSubset(ImageFiles):
    """Classes are WordNet ids, found as the folder of an image, else as the beginning of its name, else in a CSV."""

    folders: ClassVar[tuple[str, ...]]
    homepage: ClassVar[str] = "https://www.image-net.org"
    licence: ClassVar[str] = "ImageNet terms of access (non-commercial research); class lists MIT"

    @classmethod
    def class_lists(cls) -> dict[str, list[str]]:
        raw = read_splits(cls.name)
        return {split: raw[split] for split in SPLITS}

    def find(self, root: Path) -> Path | None:
        return next((f for f in (root / name for name in self.folders) if f.is_dir() and any(_sources(f))), None)

    def listing(self, where: Path, split: str) -> Listing:
        lists = self.class_lists()
        files = _by_class(where, set(classes_of(lists, "all")))
        wanted = classes_of(lists, split)
        need_classes(self, wanted, files, where)
        return Listing.of_classes(files, wanted)


@DATASETS.register("mini_imagenet")
@dataclass(frozen=True)
class MiniImageNet(_ImageNetSubset):
    """The 64 / 16 / 20 classes of Ravi and Larochelle 2017 with 600 images each."""

    name = "mini_imagenet"
    description = "100 ImageNet classes with 600 images each, split by Ravi and Larochelle"
    in_imagenet = "contains"
    collection = "ImageNet-1k"
    classes = {"train": 64, "val": 16, "test": 20}
    folders = ("mini_imagenet", "mini-imagenet", "miniimagenet", "miniImageNet", "miniImagenet")
    downloads = (Download("https://www.image-net.org/download.php", note="ILSVRC2012, on registration"),
                 Download("https://github.com/twitter-research/meta-learning-lstm", note="the CSV files"))
    layout = ("mini_imagenet/images/*.jpg (or images.zip) with train.csv, val.csv, test.csv (columns filename, label)",
              "mini_imagenet/<wnid>/*.jpg, or train/, val/, test/ or images/ with such folders")


@DATASETS.register("tiered_imagenet")
@dataclass(frozen=True)
class TieredImageNet(_ImageNetSubset):
    """The 351 / 97 / 160 classes of Ren et al. 2018; splits share no super-class. The train split takes about 9.5 GB
    at the default size."""

    name = "tiered_imagenet"
    description = "608 ImageNet classes in 34 super-classes, about 1,280 images each, split by Ren et al."
    in_imagenet = "contains"
    collection = "ImageNet-1k"
    classes = {"train": 351, "val": 97, "test": 160}
    folders = ("tiered_imagenet", "tiered-imagenet", "tieredimagenet", "tieredImageNet", "tieredImagenet")
    downloads = (Download("https://www.image-net.org/download.php", note="ILSVRC2012, on registration"),
                 Download("https://github.com/renmengye/few-shot-ssl-public", note="class lists"))
    layout = ("tiered_imagenet/train, val and test with <wnid>/*.jpg", "tiered_imagenet/<wnid>/*.jpg")

    @classmethod
    def class_lists(cls) -> dict[str, list[str]]:
        raw = read_splits(cls.name)
        return {split: [wnid for wnids in raw[split].values() for wnid in wnids] for split in SPLITS}


def _sources(where: Path) -> list[Path]:
    """Folders and zips below `where` that may hold images."""
    return [path for path in sorted(where.iterdir())
            if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() == ".zip")]


def _by_class(where: Path, known: set[str]) -> dict[str, list[tuple[Tree, str]]]:
    labels = _read_csv(where)
    files: dict[str, list[tuple[Tree, str]]] = defaultdict(list)
    for source in _sources(where):
        tree = open_tree(source)
        for name in tree.names():
            parts = name.split("/")
            parent = parts[-2] if len(parts) > 1 else source.name
            if parent in known:
                files[parent].append((tree, name))
            # With CSV files only what they list belongs to the set.
            elif labels and parts[-1] in labels:
                files[labels[parts[-1]]].append((tree, name))
            elif not labels and (match := _WNID.match(parts[-1])) and match.group() in known:
                files[match.group()].append((tree, name))
    return files


def _read_csv(where: Path) -> dict[str, str]:
    """file name -> class from train.csv, val.csv and test.csv, as far as they are there."""
    labels = {}
    for path in (where / f"{split}.csv" for split in SPLITS):
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as handle:
                reader = csv.DictReader(handle)
                if not {"filename", "label"} <= set(reader.fieldnames or ()):
                    raise FewshotError(f"{path} has columns {reader.fieldnames}; expected filename, label")
                labels.update({row["filename"]: row["label"] for row in reader})
    return labels
