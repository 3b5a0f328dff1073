"""Images in parquet files, and the data sets of the Hugging Face hub."""

from __future__ import annotations

import bisect
import functools
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fewshot.core.columns import picked
from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed
from fewshot.core.registry import unknown_message
from fewshot.datasets.base import DATASETS, Dataset
from fewshot.datasets.own import Item, LabelledImages, class_of, natural, read_names, split_of

_IMAGE = ("image", "img", "jpg", "png")
_LABEL = ("label", "labels", "class", "class_name", "category", "target")
_COMPLETE = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)\.parquet")
_MEMBER = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Shard:
    """A parquet file whose image column holds encoded bytes, alone or as {bytes, path}. One group of rows is in memory at
    a time: rows that are asked for in order are read once."""

    def __init__(self, path: Path, name: str):
        parquet = needed("pyarrow.parquet", f"reading {path}")
        self.path, self.name = path, name
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are these
            raise FewshotError(f"{path} is not a readable parquet file ({error}); it is damaged or incomplete, so copy it "
                               "again") from None
        self.schema, about = self._file.schema_arrow, self._file.metadata
        sizes = (about.row_group(number).num_rows for number in range(about.num_row_groups))
        self._ends = [0]
        for size in sizes:
            self._ends.append(self._ends[-1] + size)
        self._group: tuple[int, Any] = -1, None
        self._lock = threading.Lock()
        self._stamp = path.stat().st_size, path.stat().st_mtime_ns
        self.image = ""

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Column -> names of its numbers, as the library `datasets` notes them."""
        noted = (self.schema.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(noted)["info"]["features"] if noted else {}
            return {column: list(map(str, about["names"])) for column, about in features.items()
                    if isinstance(about, dict) and about.get("_type") == "ClassLabel"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FewshotError(f"{self.path} has damaged notes on its columns ({error!r}); write it again") from None

    def column(self, name: str) -> list:
        return self._file.read(columns=[name]).column(0).to_pylist()

    def stamp(self, name: str) -> tuple[int, int]:
        """Size and time of change of the file."""
        return self._stamp

    def read(self, name: str) -> bytes:
        row = int(name.rpartition(":")[2])
        group = bisect.bisect_right(self._ends, row) - 1
        with self._lock:
            if self._group[0] != group:
                self._group = -1, None  # both need not fit
                self._group = group, self._file.read_row_group(group, columns=[self.image]).column(0)
            value = self._group[1][row - self._ends[group]].as_py()
        return image_bytes(value)

    def where(self, name: str) -> str:
        return f"{self.path}, row {name.rpartition(':')[2]}"


class Rows:
    """A split of the library `datasets`."""

    def __init__(self, split: Any, image: str, name: str):
        undecoded = needed("datasets", f"reading {name}").Image(decode=False)
        self._split, self._image, self.name = split.cast_column(image, undecoded), image, name

    def stamp(self, name: str) -> tuple[int, int]:
        """Of the file that the library keeps the rows in."""
        status = [os.stat(file["filename"]) for file in self._split.cache_files]
        return sum(each.st_size for each in status), max((each.st_mtime_ns for each in status), default=0)

    def read(self, name: str) -> bytes:
        value = self._split[int(name.rpartition(":")[2])][self._image]
        if value is not None and value.get("bytes") is None and value.get("path"):
            return Path(value["path"]).read_bytes()
        return image_bytes(value)

    def where(self, name: str) -> str:
        return f"{self.name}, row {name.rpartition(':')[2]}"


@DATASETS.register("parquet")
@dataclass(frozen=True)
class Parquet(LabelledImages):
    """`root` is a parquet file, or a folder of them: one row an image, with its encoded bytes (or {bytes, path}) and a
    label, a name or a number. The names of numbers are read from every file by itself, as the library `datasets` notes them.

    image_column, label_column   their names; None: the only column with a usual name (image, img, ...; label, ...)
    config      of several folders of files, which one
    splits, split_seed, channels, invert, class_names   see `LabelledImages`; a filename is "FILE.parquet:ROW". Own splits
                are those that the files, or their folders, are named by (data/train-00000-of-00002.parquet)
    """

    name = "parquet"
    description = "own images in parquet files"
    layout = ("<file>.parquet (root is the file, or the folder of such files)",)
    root_is = "a parquet file, or a folder of them"

    image_column: str | None = None
    label_column: str | None = None
    config: str | None = None

    def find(self, root: Path) -> Path | None:
        return root if root.is_file() or root.is_dir() else None

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        top = where if where.is_dir() else where.parent
        files = self._chosen(where, parquet_files(where))
        if not files:
            raise FewshotError(f"{where} holds no .parquet files; root is a parquet file, or a folder of them")
        items, own = list[Item](), dict[str, str]()
        for file in files:
            shard, split = Shard(top / file, file), split_of(file)
            columns, place = shard.schema.names, str(shard.path)
            shard.image = picked("image", self.image_column, columns, _IMAGE, place, "pass image_column=NAME")
            label = picked("label", self.label_column, columns, _LABEL, place, "pass label_column=NAME")
            added = self._items(shard, shard.column(label), shard.class_names.get(label))
            items += added
            own |= {item.file: split for item in added} if split else {}
        if not items:
            raise FewshotError(f"{where} holds no rows")
        return items, own

    def _items(self, tree: Shard | Rows, labels: Sequence[object], noted: list[str] | None) -> list[Item]:
        names = read_names(self.class_names) or noted
        files = (f"{tree.name}:{row}" for row in range(len(labels)))
        return [Item(tree, file, class_of(label, names, tree.where(file)))
                for file, label in zip(files, labels, strict=True)]

    def _chosen(self, where: Path, files: list[str]) -> list[str]:
        """The files of one configuration; raises FewshotError where some are missing or there are several."""
        by_config: dict[str, list[str]] = {}
        for file in files:
            folders = [part for part in PurePosixPath(file).parts[:-1] if part != "data" and split_of(part) is None]
            by_config.setdefault("/".join(folders), []).append(file)
        if self.config is not None:
            if self.config not in by_config:
                raise FewshotError(unknown_message(f"config of {where}", self.config, list(by_config)))
            files = by_config[self.config]
        elif len(by_config) > 1:
            raise FewshotError(f"{where} holds several sets of parquet files: {', '.join(map(repr, sorted(by_config)))}; "
                               "pass config=NAME for one of them")
        matches = [found for file in files if (found := _COMPLETE.fullmatch(file))]
        for (stem, total), there in Counter((found[1], int(found[3])) for found in matches).items():
            if there < total:
                raise FewshotError(f"{where} holds {there} of the {total} files {stem}-*-of-{total:05d}; fetch the others")
        return files


def parquet_files(where: Path) -> list[str]:
    """The parquet files below a folder, as paths relative to it; hidden ones do not count."""
    if not where.is_dir():
        return [where.name]
    found = (path.relative_to(where) for path in where.rglob("*.parquet"))
    return sorted((path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)), key=natural)


@dataclass(frozen=True)
class HuggingFace(Parquet):
    """`hf:owner/name`: a data set of the Hugging Face hub, whose files lie below the data root as owner/name, or where
    `huggingface_hub` keeps what it has fetched. Parquet files are read by pyarrow, all else (folders of images, what
    `save_to_disk` wrote) by the library `datasets`, which must be installed.

    Options are those of `Parquet`; config is also the configuration that `datasets` is asked for.
    """

    description = "a data set of the Hugging Face hub"
    licence = "see its page"
    root_is = ""

    @property
    def member(self) -> str:
        return self.name.removeprefix("hf:")

    def find(self, root: Path) -> Path | None:
        if (root / self.member).is_dir():
            return root / self.member
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.member, repo_type="dataset", local_files_only=True))
        except (OSError, ValueError):  # not there, or no name of the hub
            return None

    @property
    def can_fetch(self) -> bool:
        return True

    def fetch(self, root: Path) -> None:
        """All files into owner/name below the data root, complete or, beside it, to be continued."""
        from huggingface_hub import snapshot_download

        target = root / self.member
        if target.is_dir():
            return
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            snapshot_download(self.member, repo_type="dataset", local_dir=unfinished)
            os.replace(unfinished, target)
        except (OSError, ValueError) as error:  # the hub's own errors are these, too
            raise FewshotError(f"could not fetch {self.name} to {target} ({error}); try again, it continues, or copy the "
                               "files there by hand") from None

    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        if parquet_files(where):
            return super().collect(where)
        items, own = list[Item](), dict[str, str]()
        for part, split in self._splits(where):
            columns, place = split.column_names, f"{self.name}, split {part}"
            image = picked("image", self.image_column, columns, _IMAGE, place, "pass image_column=NAME")
            label = picked("label", self.label_column, columns, _LABEL, place, "pass label_column=NAME")
            added = self._items(Rows(split, image, part), split[label], getattr(split.features[label], "names", None))
            items += added
            own |= {item.file: found for item in added} if (found := split_of(part)) else {}
        return items, own

    def _splits(self, where: Path) -> Iterator[tuple[str, Any]]:
        """(name, rows) of the splits that the library finds there."""
        library = needed("datasets", f"reading {where}, which holds no parquet files")
        try:
            saved = (where / "dataset_dict.json").is_file() or (where / "state.json").is_file()
            found = library.load_from_disk(str(where)) if saved else library.load_dataset(str(where), self.config)
        except Exception as error:  # every format fails in its own way
            raise FewshotError(f"the library datasets cannot read {self.name} in {where} ({error}); look at the files, or "
                               "at config=NAME") from error
        yield from found.items() if isinstance(found, dict) else [("all", found)]


@DATASETS.families.register("hf")
@functools.cache
def hugging_face(member: str) -> type[Dataset]:
    """The data set `hf:member`."""
    if not _MEMBER.fullmatch(member):
        raise FewshotError(f"{member!r} is no name of the Hugging Face hub; give hf:owner/name")
    return type("HuggingFace", (HuggingFace,), {"name": f"hf:{member}", "layout": (f"{member}/",),
                                                "homepage": f"https://huggingface.co/datasets/{member}"})


def image_bytes(value: object) -> bytes:
    """The encoded image of a cell; raises ValueError where there is none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"no image bytes but {type(data).__name__}")
    return data
