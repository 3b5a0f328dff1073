"""Caltech-101: photographs of 100 kinds of objects."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fewshot.datasets.base import DATASETS, classes_of, read_splits
from fewshot.datasets.divided import published_listing
from fewshot.datasets.files import Download, Tree, open_tree
from fewshot.datasets.images import ImageFiles, Listing, need_classes

_SPLIT_FILE = "split_zhou_Caltech101.json"
_PLACES = ("101_ObjectCategories", "caltech101_s128.zip", "101_ObjectCategories.zip")


@DATASETS.register("caltech101")
@dataclass(frozen=True)
class Caltech101(ImageFiles):
    """100 object classes, without BACKGROUND_Google and Faces_easy (the same faces as Faces).

    protocol   "classes": a 60 / 16 / 24 split of the classes made for this project (splits/caltech101.json; body and
               head of one animal stay in one split).
               "zhou": all 100 classes in each split and the images divided 4,128 / 1,649 / 2,465, as published with
               CoOp (Zhou et al. 2022), labels and class names as published; needs split_zhou_Caltech101.json.

    Backbones pretrained on ImageNet have seen such objects: novel classes are not new to them.
    """

    name = "caltech101"
    description = "photographs of 100 object classes, 31 to 800 each"
    licence = "CC BY 4.0 (Caltech)"
    homepage = "https://data.caltech.edu/records/mzrjq-6wc02"
    image_size = 128
    in_imagenet = "contains"
    classes = {"train": 60, "val": 16, "test": 24}
    downloads = (Download("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                          "3138e1922a9193bfa496528edbbc45d0"),)
    layout = ("caltech101/101_ObjectCategories/<class>/*.jpg (unzip, then tar xzf 101_ObjectCategories.tar.gz)",
              "caltech101/caltech101_s128.zip (the same images reduced to a shorter side of 128)",
              f"caltech101/{_SPLIT_FILE} for protocol=\"zhou\" (from github.com/KaiyangZhou/CoOp, DATASETS.md)")
    protocols = ("classes", "zhou")

    protocol: str = "classes"

    def find(self, root: Path) -> Path | None:
        folders = (root / "caltech101", root / "caltech-101", root)
        return next((f / place for f in folders for place in _PLACES if (f / place).exists()), None)

    def listing(self, where: Path, split: str) -> Listing:
        lists = read_splits("caltech101")
        names = classes_of(lists, "all")
        known = set(names)
        files: defaultdict[str, list[tuple[Tree, str]]] = defaultdict(list)
        tree = open_tree(where)
        for name in tree.names():
            parent = name.rpartition("/")[0].rpartition("/")[2]
            if parent in known:
                files[parent].append((tree, name))
        need_classes(self, sorted(names), files, where)
        if self.protocol == "zhou":
            return published_listing(where.parent / _SPLIT_FILE, (file for found in files.values() for file in found), split)
        return Listing.of_classes(files, classes_of(lists, split))
