"""Files that are complete or absent, and safetensors files that are readable or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
from torch import Tensor

from fewshot.errors import FewshotError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; at the end of the block it takes the place of `path` in one step.

    The folder is made where needed. When the block raises, the old file stays and the temporary one is removed.
    Raises OSError where the disk does not take it, also when it was safetensors that met the full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the rename itself lives in the directory
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_safetensors(path: str | Path, what: str, kind: str, make: str, remake: str) -> Iterator:
    """The open file, for its metadata and tensors. Raises FewshotError: `no <what> at <path>; <make>` where it is missing,
    `<path> is not <kind> (...); <remake>` where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise FewshotError(f"no {what} at {path}; {make}")
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            yield handle
    except safetensors.SafetensorError as error:
        raise FewshotError(f"{path} is not {kind} ({error}); {remake}") from None


def read_safetensors(path: str | Path, *texts: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file, with the texts of `opened_safetensors`."""
    with opened_safetensors(path, *texts) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118


def write_atomically(path: str | Path, data: bytes | memoryview) -> Path:
    """Replace `path` by a complete new file with this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)
