"""Decoded images on disk: safetensors files addressed by what they were made from, in a folder of a bounded size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import platformdirs
import safetensors
from safetensors.torch import load_file
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.files import replacing, save_tensors

# Raise when decoding or rendering changes, so that old files are not used.
VERSION = 1
_OURS = re.compile(r".+-[0-9a-f]{20}\.safetensors(\.[0-9a-f]{12}\.tmp)?")


def default_folder() -> Path:
    """The environment variable FEWSHOT_CACHE, else a folder of the user's where the platform keeps caches."""
    given = os.environ.get("FEWSHOT_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("fewshot", appauthor=False) / "images"


def bound() -> int:
    """Bytes that the folder may hold: the environment variable FEWSHOT_CACHE_GB, 20 unless it is set."""
    given = os.environ.get("FEWSHOT_CACHE_GB", "20")
    try:
        return int(float(given) * 1e9)
    except ValueError:
        raise FewshotError(f"FEWSHOT_CACHE_GB={given!r}; give the gigabytes that decoded images may take") from None


def files_in(folder: Path) -> list[tuple[Path, int]]:
    """(file, bytes) of all that was cached there, the least recently used first; other files are none of ours."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _OURS.fullmatch(path.name):
            with contextlib.suppress(OSError):  # removed this moment by another process
                status = path.stat()
                found.append((status.st_mtime, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def clear(folder: Path, down_to: int = 0, but: Path | None = None) -> int:
    """Remove the least recently used files until the others have `down_to` bytes at most; returns how many bytes went."""
    found = files_in(folder)
    left = total = sum(size for _, size in found)
    for path, size in found:
        if left > down_to and path != but:
            with contextlib.suppress(OSError):
                path.unlink()
                left -= size
    return total - left


def path_for(folder: Path | None, label: str, key: object) -> Path | None:
    """The file for `key` (anything JSON can hold), or None without a folder."""
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()
    label = re.sub(r"[^\w.-]", "_", label)  # names such as hf:owner/name
    return folder / f"{label}-{digest[:20]}.safetensors"


def read(path: Path | None) -> dict[str, Tensor] | None:
    """The tensors, or None when there are none; a damaged file counts as none and is written anew."""
    if path is None or not path.is_file():
        return None
    try:
        found = load_file(path)
        with contextlib.suppress(OSError):  # a cache for reading only
            os.utime(path)  # it was used now: others are removed before it
        return found
    except (safetensors.SafetensorError, OSError) as error:
        warnings.warn(f"cannot read the cache file {path} ({error}); making it again", stacklevel=4)
        return None


def write(path: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write atomically. A cache that cannot be written costs time, not correctness: that is a warning."""
    if path is None:
        return
    try:
        with replacing(path) as temporary:
            save_tensors(temporary, tensors)
        clear(path.parent, bound(), but=path)
    except OSError as error:
        warnings.warn(f"cannot keep decoded images in {path.parent} ({error}); they will be decoded again next time",
                      stacklevel=4)
