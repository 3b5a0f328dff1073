"""Images of one's own, wherever they come from: which of them make a split."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot.core.checked import check_integer
from fewshot.core.columns import read_table
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import SPLITS, Request
from fewshot.datasets.files import Tree, composed
from fewshot.datasets.images import ImageFiles, Listing

_COUNTS = re.compile(r"\d+/\d+/\d+")
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}
_REMEDY = ('pass splits="64/16/20" (numbers of train, val and test classes, which split_seed draws) or '
           'splits="FILE.csv" (columns class,split or filename,split), or use split="all"')


class Item(NamedTuple):
    """An image: what holds it, its name there, and its class."""

    tree: Tree
    file: str
    label: str


class Division(NamedTuple):
    """A way to divide: class -> split, or file -> split; and where that is said, for messages."""

    column: str
    home: Mapping[str, str]
    origin: str


@dataclass(frozen=True)
class OwnImages(ImageFiles):
    """Labelled images whose few-shot split is said by an option, or by the source itself.

    splits      what divides the classes. A CSV file with columns class,split or filename,split, a split being train, val or
                test. Or three numbers of classes, "64/16/20": split_seed draws them. Or "own": the splits of the source,
                also where these share classes. None: those of the source, which must not share any. The split "all" is
                always every image
    split_seed  orders the classes for splits="64/16/20" by a hash of seed and name, the same everywhere; the first ones
                are for training
    channels    3, or 1 for greyscale
    invert      turn light and dark round: dark ink on light paper is to a network trained on light ink on dark (omniglot,
                glyphs) something else
    """

    licence = "that of the images"
    homepage = ""
    state = "own images"
    in_imagenet = "may contain"
    cached = False

    splits: str | Path | None = None
    split_seed: int = 0
    channels: int = 3  # type: ignore[misc]  # an option here, a constant of every other data set
    invert: bool = False

    def __post_init__(self) -> None:
        check_integer("split_seed", self.split_seed)
        if not isinstance(self.invert, bool):
            raise FewshotError(f"invert={self.invert!r}; give True or False")
        if self.channels not in (1, 3):
            raise FewshotError(f"channels={self.channels!r}; give 3 for colour or 1 for greyscale")

    @abc.abstractmethod
    def collect(self, where: Path) -> tuple[list[Item], dict[str, str]]:
        """(all images, file -> split as far as the source says so)."""

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The class names in the order of their labels."""
        return sorted(names, key=natural)

    @property
    def inverted(self) -> bool:  # type: ignore[override]  # as `channels`
        return self.invert

    def root(self, root: str | Path | None) -> Path:
        if root is None and self.root_is:
            raise FewshotError(f'the data set "{self.name}" needs root=..., {self.root_is}')
        return super().root(root)

    def require(self, root: Path) -> Path:
        if self.root_is and self.find(root) is None:
            raise FewshotError(f"{root} is not {self.root_is}")
        return super().require(root)

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        """Nothing: what there is depends on the options, not on the data root."""
        return {}

    def load(self, request: Request) -> ImageBank:
        self.require(request.root)
        bank = super().load(request)
        return dataclasses.replace(bank, title=_title(request.root)) if self.root_is else bank

    def listing(self, where: Path, split: str) -> Listing:
        items, own = self.collect(where)
        if split != "all":
            division = self._division(where, items, own, split)
            items = _of_split(where, items, division, split)
        names = self.ordered({item.label for item in items})
        at = {name: label for label, name in enumerate(names)}
        return Listing([(item.tree, item.file) for item in items], [at[item.label] for item in items], tuple(names))

    def _division(self, where: Path, items: list[Item], own: dict[str, str], split: str) -> Division:
        if self.splits is not None and _COUNTS.fullmatch(str(self.splits)):
            return Division("class", self._drawn(where, {item.label for item in items}), f"splits={str(self.splits)!r}")
        if self.splits not in (None, "own"):
            path = Path(self.splits).expanduser()
            return Division(*_read_splits(path), str(path))
        if not own:
            said = "it has none of its own" if self.splits is None else f"splits={self.splits!r}, and it has none"
            raise FewshotError(f"split={split!r} of {self.name} {where}: {said}; {_REMEDY}")
        if self.splits is None:
            _refuse_shared(f"{self.name} {where}", items, own)
        return Division("filename", own, f"{self.name} {where}")

    def _drawn(self, where: Path, classes: set[str]) -> dict[str, str]:
        """class -> split for numbers of classes."""
        counts = [int(number) for number in str(self.splits).split("/")]
        if sum(counts) > len(classes):
            raise FewshotError(f"splits={self.splits!r} are {sum(counts)} classes, and {where} has {len(classes)}; give "
                               "numbers that add up to these at most")
        order = sorted(classes, key=lambda name: hashlib.sha256(f"{self.split_seed}\n{name}".encode()).digest())
        homes = [part for part, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
        return dict(zip(order, homes, strict=False))  # classes beyond these are in no split


def _title(root: Path) -> str:
    """The name of the folder or file, with that of the folder around it where it is only the name of a split."""
    place = root.resolve()
    name = place.stem if place.is_file() else place.name
    return f"{place.parent.name}-{name}" if name.lower() in _WORDS else name


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts by the numbers in a name: "class 2" comes before "class 10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def split_of(path: str) -> str | None:
    """The split that a file or its folder is named by: "data/train-00000-of-00002.parquet", "val/0.tar", "x-test-0.tar"."""
    for part in reversed(PurePosixPath(path).parts):
        for word in re.findall(r"(?:^|[-_.])([A-Za-z]+)(?=$|\.|[-_]?\d)", part):
            if word.lower() in _WORDS:
                return _WORDS[word.lower()]
    return None


def class_of(value: object, names: Sequence[str] | None, where: str) -> str:
    """The class name that a stored label means: a text itself, a number the name at its place among `names`, or "class 3"
    where there are none. FewshotError for anything else."""
    text = composed(value.strip()) if isinstance(value, str) else ""
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        value = int(text)
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 0 and (names is None or value < len(names)):
            return f"class {value}" if names is None else names[value]
        known = "0 or more" if names is None else f"0 to {len(names) - 1}"
        raise FewshotError(f"{where} has the label {value}; expected {known}. Leave out what has no label")
    if not text:
        raise FewshotError(f"{where} has the label {value!r}; expected a number or a name")
    if names is not None and text not in names:
        raise FewshotError(f"{where}: {unknown_message('class', text, list(names))}")
    return text


def read_names(path: str | Path | None) -> list[str] | None:
    """Class names by number, one a line; None without a file."""
    if path is None:
        return None
    path = Path(path).expanduser()
    try:
        names = [composed(line.strip()) for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FewshotError(f"cannot read the class names {path} ({error}); give a text file with one name a line") from None
    for name, count in Counter(names).items():
        if count > 1 or not name:
            raise FewshotError(f"{path} has the class name {name!r} {count} times; give every number a name of its own")
    return names


def inside(path: str) -> str | None:
    """`path` with forward slashes and without detours, or None where it leads out of the folder it is relative to."""
    parts: list[str] = []
    plain = path.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        return None
    for part in plain.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or None


def _of_split(where: Path, items: list[Item], division: Division, split: str) -> list[Item]:
    column, home, origin = division

    def key(item: Item) -> str:
        return item.label if column == "class" else composed(item.file)

    known = {key(item) for item in items}
    strangers = [name for name in home if name not in known]
    if strangers:
        raise FewshotError(f"{origin} names {len(strangers)} of {column} that {where} does not have; "
                           + unknown_message(column, strangers[0], sorted(known)[:1000]))
    forgotten = known - set(home)
    if forgotten:
        warnings.warn(f"{origin} does not name {len(forgotten)} {column} entries of {where} (the first is "
                      f"{min(forgotten)!r}); they are in no split but \"all\"", stacklevel=6)
    chosen = [item for item in items if home.get(key(item)) == split]
    if not chosen:
        raise FewshotError(f"{origin} puts nothing into split {split!r}; it has {', '.join(sorted(set(home.values())))}")
    return chosen


def _refuse_shared(source: str, items: list[Item], own: dict[str, str]) -> None:
    """Raise FewshotError where the splits of a source share classes: they divide the images of every class."""
    homes: dict[str, set[str]] = {}
    for item in items:
        if item.file in own:
            homes.setdefault(item.label, set()).add(own[item.file])
    shared = [name for name, found in homes.items() if len(found) > 1]
    if shared:
        raise FewshotError(f"the splits of {source} share {len(shared)} of {len(homes)} classes ({shared[0]!r} is in "
                           f"{' and '.join(sorted(homes[shared[0]]))}), so test classes would have been seen in training; "
                           f'{_REMEDY}. splits="own" takes them as they are')


def _read_splits(path: Path) -> tuple[str, dict[str, str]]:
    """("class" or "filename", entry -> split)."""
    columns, rows = read_table(path, "split file")
    column = next((name for name in ("filename", "class") if name in columns), None)
    if column is None or "split" not in columns:
        raise FewshotError(f"{path} has columns {sorted(columns)}; expected class,split or filename,split")
    home: dict[str, str] = {}
    for number, row in rows:
        key, split = composed(row[column].replace("\\", "/")), row["split"]
        if split not in SPLITS:
            raise FewshotError(f"line {number} of {path}: " + unknown_message("split", split, list(SPLITS)))
        if home.setdefault(key, split) != split:
            raise FewshotError(f"line {number} of {path}: {key!r} is in {home[key]!r} and in {split!r}; name it once")
    return column, home


@dataclass(frozen=True)
class LabelledImages(OwnImages):
    """Images that carry a label each, a number or a name.

    class_names   text file with one name a line, for labels that are numbers; without it, and where the source has no names,
                  classes are called "class 0", "class 1", ...
    """

    class_names: str | Path | None = None
