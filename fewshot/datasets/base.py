"""The data-set contract: a frozen dataclass whose fields are its options and whose `load` returns an `ImageBank`."""

from __future__ import annotations

import abc
import functools
import importlib.resources
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message
from fewshot.data.banks import ImageBank
from fewshot.datasets.cache import default_folder
from fewshot.datasets.files import Download, fetch


class _Datasets(Registry["type[Dataset]"]):
    """Registered data sets, and those of a library: "torchvision:CIFAR10" is made by the family `torchvision`."""

    def __init__(self) -> None:
        super().__init__("dataset", "fewshot.datasets")
        self.families: Registry[Callable[[str], type[Dataset]]] = Registry("family of data sets", "fewshot.datasets")

    def __getitem__(self, name: str) -> type[Dataset]:
        family, colon, member = str(name).partition(":")
        return self.families[family](member) if colon else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        if ":" not in str(name):
            return super().__contains__(name)
        try:
            self[str(name)]
        except FewshotError:
            return False
        return True


DATASETS = _Datasets()
SPLITS = ("train", "val", "test")
_OTHER_NAMES = {"base": "train", "training": "train", "valid": "val", "validation": "val", "dev": "val",
                "novel": "test", "testing": "test", "evaluation": "test", "full": "all", "any": "all"}


@dataclass(frozen=True)
class Request:
    """What `load_dataset` was asked for, checked once."""

    root: Path
    split: str
    image_size: int
    on_error: str
    cache: Path | None


class Dataset(abc.ABC):
    """Base of all data sets. A subclass is a frozen dataclass (its fields are the options), registered with
    `@DATASETS.register("name")`.

    channels     1 (greyscale) or 3
    image_size   side of the square images unless the caller asks for another
    classes      number of classes of the default train, val and test split
    downloads    public files with checksums
    layout       one line per accepted layout below the data root, for people
    protocols    accepted values of the option `protocol`, if there is one
    queries      query images a class that an evaluation takes unless it says otherwise: what the classes have images for
    in_imagenet  "contains" where ImageNet-1k has classes like these, "may contain" where nobody can know, else ""
    collection   where the classes come from, for data sets that split one collection in different ways
    state        what the table says when the files are there
    root_is      what `root` must be where it is the data set itself, for people; "" where it is the data root
    cached       whether decoded images are kept in the cache folder unless the caller says otherwise
    """

    name: ClassVar[str]
    description: ClassVar[str]
    licence: ClassVar[str]
    homepage: ClassVar[str]
    channels: ClassVar[int] = 3
    image_size: ClassVar[int] = 84
    classes: ClassVar[dict[str, int]] = {}
    downloads: ClassVar[tuple[Download, ...]] = ()
    layout: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[str, ...]] = ()
    queries: ClassVar[int] = 15
    in_imagenet: ClassVar[str] = ""
    collection: ClassVar[str] = ""
    state: ClassVar[str] = "present"
    root_is: ClassVar[str] = ""
    cached: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.protocols:
            check_known(f"protocol of {self.name}", getattr(self, "protocol", None), self.protocols)

    @abc.abstractmethod
    def find(self, root: Path) -> Path | None:
        """Where the files are below the data root, or None."""

    @abc.abstractmethod
    def load(self, request: Request) -> ImageBank:
        """The images of one split; raises FewshotError with `instructions` when the files are missing."""

    @abc.abstractmethod
    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        """split -> (classes, images) of the files that are there, without decoding an image."""

    @property
    def can_fetch(self) -> bool:
        """Whether `fetch` brings files."""
        return any(item.direct for item in self.downloads)

    def root(self, root: str | Path | None) -> Path:
        """The data root that `root` stands for."""
        return default_root(root)

    def instructions(self, root: str | Path | None = None) -> str:
        """What to download, where to put it, and how to check it."""
        root = default_root(root)
        lines = [f"{self.name}: {self.description}"]
        if self.homepage:
            lines.append(f"  home      {self.homepage}")
        for item in self.downloads:
            lines.append(f"  download  {item.url}  ({item.note or f'MD5 {item.md5}'})")
        lines += [f"  files at  {root}/{place}" for place in self.layout] or ["  nothing to download"]
        if self.can_fetch:
            lines.append(f'  or        load_dataset("{self.name}", download=True) fetches it')
        return "\n".join([*lines, f"  licence   {self.licence}"])

    def require(self, root: Path) -> Path:
        """`find`, or FewshotError with the instructions."""
        where = self.find(root)
        if where is None:
            raise FewshotError(f"{self.name} is not under {root} (set FEWSHOT_DATA, or pass root=...).\n"
                               f"{self.instructions(root)}")
        return where

    def fetch(self, root: Path) -> None:
        """Download what is missing from the public home; raises FewshotError where that needs a hand."""
        if self.find(root) is not None:
            return
        if not self.downloads or not all(item.direct for item in self.downloads):
            raise FewshotError(f"{self.name} cannot be downloaded automatically.\n{self.instructions(root)}")
        for item in self.downloads:
            fetch(item, root)


def load_dataset(name: str, split: str = "test", *, root: str | Path | None = None, image_size: int | None = None,
                 on_error: str = "raise", cache: bool | str | Path | None = None, download: bool = False,
                 **options: Any) -> ImageBank:
    """The images of one split as an `ImageBank` (uint8 [M, C, H, W]).

    name         a data set of `fewshot data`, "torchvision:CIFAR10" (any of torchvision) or "hf:owner/name" (any of the
                 Hugging Face hub whose files are here)
    split        "train" (base classes), "val", "test" (novel classes) or "all"
    root         folder of the data sets; the environment variable FEWSHOT_DATA, else ./data, unless given.
                 For "folder", "csv", "parquet" and "webdataset" it is the folder or file itself
    image_size   shorter side after an antialiased resize, then centre crop; each data set has a default
    on_error     "raise" refuses unreadable images with one error that lists them; "skip" leaves them out with a warning
    cache        folder for decoded images, kept below FEWSHOT_CACHE_GB (20). True is the environment variable FEWSHOT_CACHE,
                 else the platform's folder for caches; False is nowhere; None is True for all data sets but own images
    download     fetch missing files from the public home first, checksums verified
    options      of the data set, e.g. protocol="vinyals", rotations=True for omniglot

    Raises FewshotError on an unknown name, split or option (with the nearest names), on missing or damaged files
    (with what to download and where to put it) and on unreadable images.
    """
    cls = DATASETS[name]
    known = list(inspect.signature(cls).parameters)
    for key in options:
        if key not in known:
            raise FewshotError(unknown_message(f"option of {name}", key, known))
    check_known("on_error", on_error, ("raise", "skip"))
    check_split(split)
    size = check_integer("image_size", cls.image_size if image_size is None else image_size, 8, 1024)
    dataset = cls(**options)
    folder = dataset.root(root)
    if download:
        dataset.fetch(folder)
    cache = dataset.cached if cache is None else cache
    if cache is True:
        cache = default_folder()
    place = Path(cache).expanduser() if cache else None
    return dataset.load(Request(folder, split, size, on_error, place))


def dataset_table(root: str | Path | None = None) -> list[dict]:
    """One row per registered data set, nothing decoded: name, description, licence, channels, image_size, state
    ("built in", "present", "missing", "damaged" or "own images"), where, splits {split: {"classes", "images"}}, the
    same as text in classes and images (train / val / test), and how to get it. A set whose files are not there has
    its published number of classes and None images."""
    root = default_root(root)
    rows = []
    for name in DATASETS:
        dataset = DATASETS[name]()
        row = {"name": name, "description": dataset.description, "licence": dataset.licence,
               "channels": dataset.channels, "image_size": dataset.image_size, "state": "missing", "where": "",
               "how": f"fewshot data --how {name}"}
        counts: dict[str, tuple[int, int | None]] = {split: (count, None) for split, count in dataset.classes.items()}
        where = dataset.find(root)
        if dataset.state != "present" or where is not None:
            row.update(state=dataset.state, where=str(where) if dataset.state == "present" else "", how="")
            try:
                counts = {**dataset.counts(root)}
            except FewshotError as error:
                row.update(state="damaged", how=str(error))
        row["splits"] = {split: {"classes": classes, "images": images} for split, (classes, images) in counts.items()}
        for position, column in enumerate(("classes", "images")):
            numbers = [f"{count[position]:,}" for count in counts.values() if count[position] is not None]
            row[column] = " / ".join(numbers)
        rows.append(row)
    return rows


def instructions(name: str, root: str | Path | None = None) -> str:
    """What to download for the data set `name`, where to put it, and how to check it."""
    return DATASETS[name]().instructions(root)


def default_root(root: str | Path | None = None) -> Path:
    """`root`, else the environment variable FEWSHOT_DATA, else ./data."""
    return Path(root or os.environ.get("FEWSHOT_DATA") or "data").expanduser()


def kind_of(path: Path) -> str:
    """The data set that reads what lies there: a file by its suffix, a folder by tar or parquet files in it or in data/."""
    kinds = {".csv": "csv", ".tsv": "csv", ".tar": "webdataset", ".parquet": "parquet"}
    if not path.is_dir():
        return kinds.get(path.suffix.lower(), "folder")
    found = (file.suffix.lower() for folder in (path, path / "data") for file in sorted(folder.glob("*")) if file.is_file())
    return next((kinds[suffix] for suffix in found if suffix in (".tar", ".parquet")), "folder")


def check_known(kind: str, value: object, known: Iterable[str]) -> None:
    if value not in (known := list(known)):
        raise FewshotError(unknown_message(kind, str(value), known))


def check_split(split: str) -> None:
    if split in (*SPLITS, "all"):
        return
    meant = _OTHER_NAMES.get(str(split).lower())
    if meant:
        raise FewshotError(f"unknown split {split!r}; did you mean {meant!r}?")
    check_known("split", split, (*SPLITS, "all"))


@functools.cache
def read_splits(name: str) -> dict:
    """The committed class lists `splits/<name>.json`."""
    return json.loads((importlib.resources.files("fewshot.datasets") / "splits" / f"{name}.json").read_text("utf-8"))


def classes_of(lists: Mapping[str, Sequence[str]], split: str) -> list[str]:
    """Class names of one split; "all" is train, val, test in this order."""
    return [name for part in (SPLITS if split == "all" else (split,)) for name in lists[part]]
