"""Decoded images on disk: safetensors files addressed by what they were made from."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from fewshot.core.files import replacing, save_tensors

# Raise when decoding or rendering changes, so that old files are not used.
VERSION = 1


def path_for(folder: Path | None, label: str, key: object) -> Path | None:
    """The file for `key` (anything JSON can hold), or None without a folder."""
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()
    return folder / f"{label}-{digest[:20]}.safetensors"


def read(path: Path | None) -> dict[str, Tensor] | None:
    """The tensors, or None when there are none; a damaged file counts as none and is written anew."""
    if path is None or not path.is_file():
        return None
    try:
        return load_file(path)
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
    except OSError as error:
        warnings.warn(f"cannot keep decoded images in {path.parent} ({error}); they will be decoded again next time",
                      stacklevel=4)
