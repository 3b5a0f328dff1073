"""Own images: any folder of class folders."""

from __future__ import annotations

import csv
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, SPLITS, Request
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.files import Tree, composed
from fewshot.datasets.images import ImageFiles, Listing


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(ImageFiles):
    """`root` is the folder itself: root/<class>/**/*.jpg. Class names are the folder names, in Unicode's composed form and
    sorted.

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

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise FewshotError(f"channels={self.channels!r}; give 3 for colour or 1 for greyscale")

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
        return super().load(request)

    def listing(self, where: Path, split: str) -> Listing:
        if self.splits is None and split != "all":
            raise FewshotError(f'split={split!r} of a folder needs splits="...csv" (columns class,split or filename,'
                               'split); without it use split="all"')
        tree = FolderTree(where)
        files: defaultdict[str, list[tuple[Tree, str]]] = defaultdict(list)
        written: dict[str, str] = {}  # class -> its folder's name as the disk has it
        for name in tree.names():
            if "/" in name:
                folder = name.split("/")[0]
                key = composed(folder)
                if written.setdefault(key, folder) != folder:
                    raise FewshotError(f"{where} holds two folders {key!r}, which differ only in how their accents are "
                                       "encoded; give one of them another name")
                files[key].append((tree, name))
        if not files:
            raise FewshotError(f"{where} has no class folders with images; expected {where}/<class>/<image>.jpg")
        if set(files) <= {"train", "val", "valid", "validation", "test"}:
            raise FewshotError(f"{where} holds {', '.join(sorted(files))}, which look like splits, not classes; "
                               f'pass root="{where / min(files)}" and split="all"')
        empty = [p.name for p in sorted(where.iterdir())
                 if p.is_dir() and composed(p.name) not in files and p.name[0] != "."]
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
