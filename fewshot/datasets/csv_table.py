"""Own images, listed in a CSV file of paths and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewshot.core.columns import picked, read_table
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.datasets.base import DATASETS, SPLITS
from fewshot.datasets.files import Folder as FolderTree
from fewshot.datasets.own import Item, LabelledImages, class_of, inside, read_names

_IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
_LABEL = ("label", "class", "class_name", "category", "target")


@DATASETS.register("csv")
@dataclass(frozen=True)
class CsvTable(LabelledImages):
    """`root` is the CSV file (or .tsv, with tabs), whose header names a column of paths and one of labels.

    image_column, label_column   their names; None: the only column with a usual name (image, path, file, filename, ...;
                                 label, class, category, ...)
    split_column   column of train, val and test, "" where an image is in none. None: the column "split", if there is one
    images         folder that the paths are relative to; None: that of the CSV file. A path that leads out of it is refused
    splits, split_seed, channels, invert, class_names   see `LabelledImages`; a filename is a path as it stands in the CSV
    """

    name = "csv"
    description = "own images, listed in a CSV file of paths and labels"
    layout = ("<images>.csv (root is the file itself)",)
    root_is = "a CSV file of paths and labels"

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    images: str | Path | None = None

    def find(self, root: Path) -> Path | None:
        return root if root.is_file() else None

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        columns, rows = read_table(where, "table", "\t" if where.suffix.lower() == ".tsv" else ",")
        image = picked("path of the image", self.image_column, columns, _IMAGE, str(where), "pass image_column=NAME")
        label = picked("label", self.label_column, columns, _LABEL, str(where), "pass label_column=NAME")
        split = self.split_column or ("split" if "split" in columns else None)
        if split is not None:
            split = picked("split", split, columns, (), str(where), "pass split_column=NAME")
        names, tree = read_names(self.class_names), FolderTree(self._folder(where))
        items, own = list[Item](), dict[str, str]()
        seen: dict[str, int] = {}
        for number, row in rows:
            place = f"line {number} of {where}"
            file = inside(row[image])
            if file is None:
                raise FewshotError(f"{place} has the path {row[image]!r}, which is empty or leads out of {tree.path}; paths "
                                   "are relative to that folder, or to images=FOLDER")
            if file in seen:
                raise FewshotError(f"{place} names {file!r} again, after line {seen[file]}; name every image once")
            seen[file] = number
            items.append(Item(tree, file, class_of(row[label], names, place)))
            if split is not None and row[split]:
                if row[split] not in SPLITS:
                    raise FewshotError(f"{place}: {unknown_message('split', row[split], list(SPLITS))}")
                own[file] = row[split]
        if not items:
            raise FewshotError(f"{where} lists no images; expected a line with {image} and {label} for each")
        return items, own

    def _folder(self, where: Path) -> Path:
        folder = where.parent if self.images is None else Path(self.images).expanduser()
        if not folder.is_dir():
            raise FewshotError(f"images={str(folder)!r} is not a folder; the paths in {where} are relative to it")
        return folder
