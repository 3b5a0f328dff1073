"""Own images: any folder of class folders."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, SPLITS, Request
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.files import Tree, composed
from fewshot.datasets.images import ImageFiles, Listing

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(ImageFiles):
    """`root` is the folder itself: root/<class>/**/*.jpg. Class names are the folder names, in Unicode's composed form and
    sorted.

    level      how many folders below root the classes lie, 1 or 2. None: 1, and folders that look like splits (train, test)
               or like groups of classes are refused; 1 takes them for classes, 2 those inside them ("group/class")
    invert     turn light and dark round: dark ink on light paper is to a network trained on light ink on dark (omniglot,
               glyphs) something else
    splits     CSV file with columns class,split or filename,split (filename is the path below root); a split is train,
               val or test. Without it the only split is "all", which with it still is every image.
    channels   3, or 1 for greyscale
    """

    name = "folder"
    description = "own images, one folder per class"
    licence = "that of the images"
    homepage = ""
    layout = ("<class>/*.jpg (root is the folder of class folders itself)",)
    state = "own images"
    in_imagenet = "may contain"
    cached = False

    splits: str | Path | None = None
    channels: int = 3  # type: ignore[misc]  # an option here, a constant of every other data set
    level: int | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        if self.level not in (None, 1, 2) or isinstance(self.level, bool):
            raise FewshotError(f"level={self.level!r}; classes lie 1 or 2 folders below root")
        if not isinstance(self.invert, bool):
            raise FewshotError(f"invert={self.invert!r}; give True or False")
        if self.channels not in (1, 3):
            raise FewshotError(f"channels={self.channels!r}; give 3 for colour or 1 for greyscale")

    @property
    def inverted(self) -> bool:  # type: ignore[override]  # as `channels`
        return self.invert

    def root(self, root: str | Path | None) -> Path:
        if root is None:
            raise FewshotError('the data set "folder" needs root=..., the folder that holds one folder per class')
        return Path(root).expanduser()

    def find(self, root: Path) -> Path | None:
        return root if root.is_dir() else None

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        """Nothing: what there is depends on the folder, not on the data root."""
        return {}

    def load(self, request: Request) -> ImageBank:
        if not request.root.is_dir():
            raise FewshotError(f"{request.root} is not a folder; root must hold one folder of images per class")
        return dataclasses.replace(super().load(request), title=_title(request.root))

    def listing(self, where: Path, split: str) -> Listing:
        if self.splits is None and split != "all":
            raise FewshotError(f'split={split!r} of a folder needs splits="...csv" (columns class,split or filename,'
                               'split); without it use split="all"')
        tree = FolderTree(where)
        files: defaultdict[str, list[tuple[Tree, str]]] = defaultdict(list)
        written: dict[str, str] = {}  # class -> its folder's name as the disk has it
        level = self.level or 1
        for name in tree.names():
            if name.count("/") >= level:
                folder = "/".join(name.split("/")[:level])
                key = composed(folder)
                if written.setdefault(key, folder) != folder:
                    raise FewshotError(f"{where} holds two folders {key!r}, which differ only in how their accents are "
                                       "encoded; give one of them another name")
                files[key].append((tree, name))
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
                          stacklevel=5)
        if split == "all" or self.splits is None:
            return Listing.of_classes(files, sorted(files))
        return self._chosen(where, files, Path(self.splits), split)

    def _chosen(self, where: Path, files: dict[str, list[tuple[Tree, str]]], splits: Path, split: str) -> Listing:
        column, home = _read_splits(splits.expanduser())
        known = set(files) if column == "class" else {composed(file) for found in files.values() for _, file in found}
        strangers = [key for key in home if key not in known]
        if strangers:
            raise FewshotError(f"{self.splits} names {len(strangers)} of {column} that {where} does not have; "
                               + unknown_message(column, strangers[0], sorted(known)[:1000]))
        forgotten = known - set(home)
        if forgotten:
            warnings.warn(f"{self.splits} does not name {len(forgotten)} {column} entries of {where} (the first is "
                          f"{min(forgotten)!r}); they are in no split but \"all\"", stacklevel=6)
        chosen = {name: [file for file in found if home.get(name if column == "class" else composed(file[1])) == split]
                  for name, found in files.items()}
        names = sorted(name for name, found in chosen.items() if found)
        if not names:
            raise FewshotError(f"{self.splits} puts nothing into split {split!r}; it has "
                               f"{', '.join(sorted(set(home.values())))}")
        return Listing.of_classes(chosen, names)


def _title(root: Path) -> str:
    """The folder's name, with that of the folder around it where it is only the name of a split."""
    place = root.resolve()
    return f"{place.parent.name}-{place.name}" if place.name.lower() in _SPLIT_NAMES else place.name


def refuse_splits(where: Path, classes: Collection[str]) -> None:
    """Raise FewshotError where class folders look like the splits of a data set: all of them, or two or more."""
    found = sorted(name for name in classes if name.lower() in _SPLIT_NAMES)
    if not found or len(found) == 1 < len(classes):  # one may be the class of trains
        return
    novel = next((name for name in reversed(found) if name.lower().startswith("test")), found[0])
    raise FewshotError(f"{where} holds {', '.join(found)}, which look like splits, not classes; pass "
                       f'root="{where / novel}" and split="all" for one of them. Where every split has classes of its own, '
                       "pass level=2 to take all folders inside them for classes, or level=1 to take these themselves")


def _refuse_groups(where: Path, files: dict[str, list[tuple[Tree, str]]]) -> None:
    """Raise FewshotError where all images lie one folder deeper, in folders that have other names in every class: these are
    the classes of groups. Folders that are named alike in several classes (session_1) divide a class."""
    inside = {name: {file.split("/")[1] if file.count("/") > 1 else "" for _, file in found}
              for name, found in files.items()}
    below = [folder for folders in inside.values() for folder in folders]
    if "" in below or len(below) == len(inside) or len(set(below)) < len(below):
        return
    example = max(sorted(inside), key=lambda name: len(inside[name]))
    raise FewshotError(f"the {len(inside)} folders of {where} hold {len(below)} folders of images with names of their own "
                       f"({example}: {', '.join(sorted(inside[example])[:3])}, ...), so they look like groups of classes; "
                       "pass level=2 to take the inner folders for classes, or level=1 for the outer ones")


def _read_splits(path: Path) -> tuple[str, dict[str, str]]:
    """("class" or "filename", entry -> split)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"cannot read the split file {path} ({error})") from None
    columns = set(rows[0]) if rows else set()
    column = next((name for name in ("filename", "class") if name in columns), None)
    if column is None or "split" not in columns:
        raise FewshotError(f"{path} has columns {sorted(map(str, columns))}; expected class,split or filename,split")
    home: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        key, split = composed((row[column] or "").strip().replace("\\", "/")), (row["split"] or "").strip()
        if split not in SPLITS:
            raise FewshotError(f"line {number} of {path}: " + unknown_message("split", split, list(SPLITS)))
        if home.setdefault(key, split) != split:
            raise FewshotError(f"line {number} of {path}: {key!r} is in {home[key]!r} and in {split!r}; name it once")
    return column, home
