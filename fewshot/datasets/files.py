"""Files of a data set: folders and zips behind one interface, and downloads with checksums."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fewshot.core.errors import FewshotError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


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


class Folder:
    """A directory tree. Names are paths below it with forward slashes."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        """All image files, sorted; hidden files and folders do not count."""
        return sorted(self._walk(str(self.path), ""))

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise FewshotError(f"cannot list {folder} ({error.strerror}); check its permissions") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # follow_symlinks: people link large sets into place.
            if entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
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


Tree = Folder | Zip


def open_tree(path: Path) -> Tree:
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
