"""Data sets that are image files: list them, decode them once, keep the result in a cache."""

from __future__ import annotations

import abc
import os
import warnings
import zipfile
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fewshot.core.bars import tqdm
from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.datasets import cache
from fewshot.datasets.base import SPLITS, Dataset, Request
from fewshot.datasets.decoding import UNREADABLE, decode
from fewshot.datasets.files import Tree

_UNREADABLE = (*UNREADABLE, zipfile.BadZipFile)  # the latter for a damaged member of a zip


@dataclass(frozen=True)
class Listing:
    """Files of one split with their labels, nothing decoded; `parts` of all splits together where these divide the images of
    each class, see `ImageBank`."""

    files: list[tuple[Tree, str]]
    labels: list[int]
    class_names: tuple[str, ...]
    parts: list[int] | None = None

    @classmethod
    def of_classes(cls, files: Mapping[str, list[tuple[Tree, str]]], class_names: Iterable[str]) -> Listing:
        """All files of the named classes, class by class."""
        class_names = tuple(class_names)
        rows = [(file, label) for label, name in enumerate(class_names) for file in files[name]]
        return cls([file for file, _ in rows], [label for _, label in rows], class_names)


class ImageFiles(Dataset):
    """A data set of encoded images; a subclass says which files belong to a split."""

    inverted: ClassVar[bool] = False

    @abc.abstractmethod
    def listing(self, where: Path, split: str) -> Listing:
        """The files of a split; raises FewshotError when classes are missing."""

    def check_source(self, where: Path) -> None:
        """Called once before decoding; may warn about files that differ from the published ones."""

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        where = self.require(root)
        listings = {split: self.listing(where, split) for split in SPLITS}
        return {split: (len(one.class_names), len(one.files)) for split, one in listings.items()}

    def load(self, request: Request) -> ImageBank:
        where = self.require(request.root)
        listing = self.listing(where, request.split)
        size, labels, names = request.image_size, torch.tensor(listing.labels), listing.class_names
        key = [self.channels, size, self.inverted, [(name, *tree.stamp(name)) for tree, name in listing.files]]
        path = cache.path_for(request.cache, f"{self.name}-{request.split}", key)
        kept = cache.read(path)
        rows: Sequence[int]
        if kept is not None and len(kept["images"]) == len(labels):
            images, rows = kept["images"], range(len(labels))
        else:
            self.check_source(where)
            images, rows = decode_all(listing.files, size, self.channels, request.on_error, self.name)
            images = 255 - images if self.inverted else images
            if len(rows) == len(labels):
                cache.write(path, {"images": images})
            else:
                labels, names = _without_empty(labels[list(rows)], names)
        files = tuple(listing.files[row][1] for row in rows)
        parts = None if listing.parts is None else torch.tensor(listing.parts)[list(rows)]
        return ImageBank(images, labels, names, self.name, request.split, files, parts=parts)


def need_classes(dataset: Dataset, wanted: Collection[str], found: Container[str], where: Path) -> None:
    """Raise unless every wanted class was found."""
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise FewshotError(f"{where} lacks {len(missing)} of {len(wanted)} classes of {dataset.name}: "
                           f"{', '.join(missing[:10])}{more}; unpack or download it again "
                           f"(fewshot data --how {dataset.name} prints how)")


def decode_all(files: list[tuple[Tree, str]], size: int, channels: int, on_error: str,
               label: str) -> tuple[Tensor, list[int]]:
    """uint8 [M, C, size, size] of the readable files, and which of the files these are.

    With on_error="raise" unreadable files raise one FewshotError with the first ten names and the total; with "skip"
    they are left out with a warning that says the same. Images that do not fit into memory are refused before any is read.
    """
    rows: list[int] = []
    bad: list[str] = []
    need, free = len(files) * channels * size * size, free_memory()
    if free is not None and need > free:
        raise FewshotError(f"{len(files):,} images of {label} at {size} x {size} pixels take {need / 1e9:.1f} GB of memory, "
                           f"and {free / 1e9:.1f} GB are free; choose a smaller image_size, or fewer classes")
    images = np.empty((len(files), channels, size, size), dtype=np.uint8)
    for row, image in enumerate(tqdm(decoded(files, size, channels), total=len(files), unit=" images",
                                     desc=f"decoding {label}", leave=False)):
        if isinstance(image, Exception):
            bad.append(f"{files[row][0].where(files[row][1])} ({image or type(image).__name__})")
        else:
            images[len(rows)] = image
            rows.append(row)
    if bad:
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        message = f"{len(bad)} of {len(files)} images of {label} cannot be read"
        if on_error == "raise":
            raise FewshotError(f'{message}; replace them or pass on_error="skip" to leave them out:\n  {shown}')
        warnings.warn(f"{message} and are left out:\n  {shown}", stacklevel=4)
    if not rows:
        raise FewshotError(f"{label} has no readable image; check the folder and the file names")
    return torch.from_numpy(images[:len(rows)]), rows


def free_memory() -> int | None:
    """Bytes that a process may still take without others being pushed out; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def decoded(files: list[tuple[Tree, str]], size: int, channels: int) -> Iterator[np.ndarray | Exception]:
    """`decode` of every file in order, or what an unreadable one raised."""
    def one(file: tuple[Tree, str]) -> np.ndarray | Exception:
        try:
            return decode(file[0].read(file[1]), size, channels)
        except _UNREADABLE as error:
            return error

    # JPEG decoding and resizing release the interpreter lock; chunks keep few decoded images in flight.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), 1024):
            yield from pool.map(one, files[start:start + 1024])


def resize_pixels(images: Tensor, size: int) -> Tensor:
    """Antialiased resize of uint8 [M, C, H, H] to [M, C, size, size]."""
    if images.shape[-1] == size:
        return images
    parts = [torch.nn.functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
             for part in images.split(1024)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def _without_empty(labels: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Classes that lost all their images disappear, so that no episode asks for them."""
    present = labels.unique()
    return torch.searchsorted(present, labels), tuple(names[i] for i in present.tolist())
