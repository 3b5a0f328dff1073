"""Files that are complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors


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


def write_atomically(path: str | Path, data: bytes | memoryview) -> Path:
    """Replace `path` by a complete new file with this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)
