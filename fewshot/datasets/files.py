"""Files of a data set: folders and zips behind one interface, and downloads with checksums."""

from __future__ import annotations

import hashlib
import os
import tempfile
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fewshot.core.errors import FewshotError
from fewshot.datasets.decoding import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

# Images that Pillow does not read.
FOREIGN_SUFFIXES = (".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")


@dataclass(frozen=True)
class Download:
    """A public file: where it comes from and, if fetching it is all there is to do (`direct`), where it goes below the
    data root; `note` says what it is where there is no checksum."""

    url: str
    md5: str = ""
    path: str = ""
    note: str = ""

    @property
    def direct(self) -> bool:
        return bool(self.path)


def composed(name: str) -> str:
    """`name` in Unicode's composed form: macOS writes the letters of file names and their accents apart."""
    return unicodedata.normalize("NFC", name)


class Tree(Protocol):
    """What holds encoded images, each by a name."""

    def stamp(self, name: str) -> tuple[int, int]:
        """Two numbers that change when the image does."""

    def read(self, name: str) -> bytes | Image.Image:
        """The encoded image, or one that its library has decoded already."""

    def where(self, name: str) -> str:
        """For messages."""


class Folder:
    """A directory tree. Names are paths below it with forward slashes."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        """All image files, sorted as their composed names are; hidden files and folders do not count. Images of kinds that
        cannot be read are passed over with a warning."""
        found = list(self._walk(str(self.path), "", frozenset()))
        foreign = Counter(os.path.splitext(name)[1].lower() for name in found if name.lower().endswith(FOREIGN_SUFFIXES))
        if foreign:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(foreign.items()))
            warnings.warn(f"images of {self.path} are passed over, as their kind cannot be read: {kinds}; convert them to "
                          "JPEG or PNG", stacklevel=4)
        return sorted((name for name in found if name.lower().endswith(IMAGE_SUFFIXES)), key=composed)

    def _walk(self, folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            raise FewshotError(f"cannot list {folder} ({error.strerror}); check its permissions") from None
        here = status.st_dev, status.st_ino
        if here in above:
            warnings.warn(f"{folder} is a link to a folder that it lies in; it is left out", stacklevel=4)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # follow_symlinks: people link large sets into place.
            if _is_folder(entry):
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", above | {here})
            elif entry.name.lower().endswith(IMAGE_SUFFIXES + FOREIGN_SUFFIXES):
                yield prefix + entry.name

    def stamp(self, name: str) -> tuple[int, int]:
        """Size and modification time: changes when the file does."""
        try:
            status = os.stat(self.path / name)
        except OSError:
            return (-1, -1)
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def where(self, name: str) -> str:
        return str(self.path / name)


class Zip:
    """A zip archive, read in place."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise FewshotError(f"{path} is not a readable zip file ({error}); it is damaged or incomplete, "
                               "so delete it and download it again") from None
        self._info = {i.filename: i for i in self._zip.infolist()}

    def names(self) -> list[str]:
        """All image files, sorted; hidden ones and what macOS adds to an archive do not count."""
        return sorted(name for name in self._info if name.lower().endswith(IMAGE_SUFFIXES)
                      and "/." not in name and not name.startswith((".", "__MACOSX")))

    def stamp(self, name: str) -> tuple[int, int]:
        """Size and CRC-32: addresses the content, wherever the zip lies."""
        info = self._info[name]
        return info.file_size, info.CRC

    def read(self, name: str) -> bytes:
        return self._zip.read(self._info[name])

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def open_tree(path: Path) -> Folder | Zip:
    return Folder(path) if path.is_dir() else Zip(path)


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(item: Download, root: Path) -> Path:
    """Download `item` below `root`, complete and with the right checksum or not at all."""
    from torchvision.datasets.utils import download_url

    target = root / item.path
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            download_url(item.url, folder, target.name, item.md5)
            os.replace(Path(folder) / target.name, target)
    # torchvision raises RuntimeError for a wrong checksum; URLError is an OSError.
    except (OSError, RuntimeError) as error:
        raise FewshotError(f"could not download {item.url} to {target} ({error}); download it by hand "
                           f"and check that its MD5 is {item.md5}") from None
    return target
