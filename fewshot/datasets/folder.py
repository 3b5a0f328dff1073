"""Own images: any folder of class folders."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.datasets.base import DATASETS
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.files import composed
from fewshot.datasets.own import Item, OwnImages

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(OwnImages):
    """`root` is the folder itself: root/<class>/**/*.jpg. Class names are the folder names, in Unicode's composed form and
    sorted.

    level      how many folders below root the classes lie, 1 or 2. None: 1, and folders that look like splits (train, test)
               or like groups of classes are refused; 1 takes them for classes, 2 those inside them ("group/class")
    splits, split_seed, channels, invert   see `OwnImages`; a filename is the path below root
    """

    name = "folder"
    description = "own images, one folder per class"
    layout = ("<class>/*.jpg (root is the folder of class folders itself)",)
    root_is = "a folder that holds one folder of images per class"

    level: int | None = None

    def __post_init__(self) -> None:
        if self.level not in (None, 1, 2) or isinstance(self.level, bool):
            raise FewshotError(f"level={self.level!r}; classes lie 1 or 2 folders below root")
        super().__post_init__()

    def find(self, root: Path) -> Path | None:
        return root if root.is_dir() else None

    def ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names)

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        tree = FolderTree(where)
        files: defaultdict[str, list[str]] = defaultdict(list)
        written: dict[str, str] = {}  # class -> its folder's name as the disk has it
        level = self.level or 1
        for name in tree.names():
            if name.count("/") >= level:
                folder = "/".join(name.split("/")[:level])
                key = composed(folder)
                if written.setdefault(key, folder) != folder:
                    raise FewshotError(f"{where} holds two folders {key!r}, which differ only in how their accents are "
                                       "encoded; give one of them another name")
                files[key].append(name)
        if not files:
            raise FewshotError(f"{where} has no class folders with images; expected {where}/{'<group>/' * (level - 1)}"
                               "<class>/<image>.jpg")
        if self.level is None:
            refuse_splits(where, files)
            if self.splits is None:
                _refuse_groups(where, files)
        full = {name.split("/")[0] for name in files}
        empty = [p.name for p in sorted(where.iterdir()) if p.is_dir() and composed(p.name) not in full and p.name[0] != "."]
        if empty:
            warnings.warn(f"{len(empty)} folders of {where} hold no images and are left out: {', '.join(empty[:10])}",
                          stacklevel=6)
        return [Item(tree, file, name) for name in sorted(files) for file in files[name]], {}


def refuse_splits(where: Path, classes: Collection[str]) -> None:
    """Raise FewshotError where class folders look like the splits of a data set: all of them, or two or more."""
    found = sorted(name for name in classes if name.lower() in _SPLIT_NAMES)
    if not found or len(found) == 1 < len(classes):  # one may be the class of trains
        return
    novel = next((name for name in reversed(found) if name.lower().startswith("test")), found[0])
    raise FewshotError(f"{where} holds {', '.join(found)}, which look like splits, not classes; pass "
                       f'root="{where / novel}" and split="all" for one of them. Where every split has classes of its own, '
                       "pass level=2 to take all folders inside them for classes, or level=1 to take these themselves")


def _refuse_groups(where: Path, files: dict[str, list[str]]) -> None:
    """Raise FewshotError where all images lie one folder deeper, in folders that have other names in every class: these are
    the classes of groups. Folders that are named alike in several classes (session_1) divide a class."""
    inside = {name: {file.split("/")[1] if file.count("/") > 1 else "" for file in found}
              for name, found in files.items()}
    below = [folder for folders in inside.values() for folder in folders]
    if "" in below or len(below) == len(inside) or len(set(below)) < len(below):
        return
    example = max(sorted(inside), key=lambda name: len(inside[name]))
    raise FewshotError(f"the {len(inside)} folders of {where} hold {len(below)} folders of images with names of their own "
                       f"({example}: {', '.join(sorted(inside[example])[:3])}, ...), so they look like groups of classes; "
                       "pass level=2 to take the inner folders for classes, or level=1 for the outer ones")
