"""Feature banks as files: written piece by piece, checked block by block, mapped where they are large."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.files import bytes_of, map_tensors, read_safetensors, replacing, tensors_header, write_atomically

MAP_BYTES = 256 << 20  # files from this size on stay on disk, mapped, and are vouched for
_BLOCK_BYTES = 32 << 20  # features that are checked or hashed at a time
_UNKNOWN = "?" * 64  # in place of a sha256 that is known only when everything is written


def blocks_of(features: Tensor) -> Iterator[Tensor]:
    """Rows of [M, D] in blocks small enough to work on."""
    yield from features.split(max(1, _BLOCK_BYTES // max(1, features.element_size() * features.shape[1])))


def check_finite(features: Tensor, first: int = 0) -> None:
    """Raise FewshotError naming the first row that is not finite; `first` is the number of the first row given."""
    bad, at = [], first
    for block in blocks_of(features):
        bad += (at + (~torch.isfinite(block).all(dim=1)).nonzero()[:, 0]).tolist()
        at += len(block)
    if bad:
        raise FewshotError(f"{len(bad)} feature rows hold NaN or infinity, the first is row {bad[0]}; remove those items or "
                           "extract them again")


def content_hash(identity: str, pieces: Iterable[Tensor]) -> str:
    """sha256 of the identity of a bank and of its features."""
    digest = hashlib.sha256(identity.encode())
    for piece in pieces:
        digest.update(bytes_of(piece))
    return digest.hexdigest()


def write(path: str | Path, pieces: Iterable[Tensor], shape: tuple[int, int], dtype: torch.dtype, small: dict[str, Tensor],
          identity: str, about: dict[str, str]) -> Path:
    """Write a bank atomically, complete or absent, from pieces [m, D] of its features in order; `small` are its labels and
    whatever else it holds.

    Raises FewshotError where they are not finite or not of this shape and dtype in total.
    """
    # Longest numbers first, so that each tensor begins at a multiple of their size.
    described = {name: (values.dtype, tuple(values.shape)) for name, values in small.items()} | {"features": (dtype, shape)}
    described = dict(sorted(described.items(), key=lambda item: (-item[1][0].itemsize, item[0] != "labels")))
    header = tensors_header(described, about | {"content_hash": _UNKNOWN})
    rows = 0

    def written(file: BinaryIO) -> Iterator[Tensor]:
        nonlocal rows
        for piece in pieces:
            if piece.dtype != dtype or piece.ndim != 2 or piece.shape[1] != shape[1]:
                raise FewshotError(f"a piece of features has dtype {piece.dtype} and shape {tuple(piece.shape)}; expected "
                                   f"{dtype} [m, {shape[1]}]")
            check_finite(piece, rows)
            file.write(bytes_of(piece))
            rows += len(piece)
            yield piece

    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name in described:
            if name == "features":
                found = content_hash(identity, written(file))
            else:
                file.write(bytes_of(small[name]))
        if rows != shape[0]:
            raise FewshotError(f"{rows} rows of features for {shape[0]} labels; give one row per label")
        file.seek(header.index(_UNKNOWN.encode()))
        file.write(found.encode())
    if Path(path).stat().st_size >= MAP_BYTES:
        _vouch(Path(path), found)
    return Path(path)


def read(path: str | Path, mmap: bool | None) -> tuple[dict[str, Tensor], dict[str, str], bool, bool]:
    """(tensors, metadata, whether they are mapped, whether somebody vouches for the content) of a file by `write`."""
    path, remake = Path(path), "delete it and embed again"
    if mmap is None:
        mmap = path.is_file() and path.stat().st_size >= MAP_BYTES
    if mmap and path.is_file():
        try:
            tensors, about = map_tensors(path)
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise FewshotError(f"{path} is not a readable feature bank ({error}); {remake}") from None
    else:
        tensors, about = read_safetensors(path, "feature bank", "a readable feature bank", "make one with `fewshot embed`",
                                          remake)
    if "content_hash" not in about or not {"features", "labels"} <= tensors.keys():
        raise FewshotError(f"{path} has no fewshot metadata; it was not written by FeatureBank.save")
    return tensors, about, mmap, mmap and _seal(path).is_file() and _vouched(path) == about["content_hash"]


def verify(path: str | Path, features: Tensor, identity: str, expected: str) -> None:
    """Read all features once; raises FewshotError where they are not finite or not what was written. From then on the file
    is vouched for as long as its size and time of change stay what they are."""
    check_finite(features)
    if content_hash(identity, blocks_of(features)) != expected:
        raise FewshotError(f"{path} does not match its checksum; delete it and embed again")
    if Path(path).stat().st_size >= MAP_BYTES:
        _vouch(Path(path), expected)


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".checked")


def _state(path: Path, found: str) -> dict:
    state = path.stat()
    return {"size": state.st_size, "changed_ns": state.st_mtime_ns, "content_hash": found}


def _vouch(path: Path, found: str) -> None:
    try:
        write_atomically(_seal(path), json.dumps(_state(path, found)).encode())
    except OSError:  # a folder for reading only: the file is read again next time
        return


def _vouched(path: Path) -> str | None:
    """The content hash that was verified, if the file has not changed since."""
    try:
        seal = json.loads(_seal(path).read_text())
        return seal["content_hash"] if seal == _state(path, seal["content_hash"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

