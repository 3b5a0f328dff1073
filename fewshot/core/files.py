"""Files that are complete or absent, and safetensors files that are readable or refused."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from fewshot.core.errors import FewshotError

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
           torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
_DEAD_SECONDS = 24 * 3600


def check_file_to_write(path: str | Path) -> None:
    """Raise FewshotError where no file can take this path, to be found before the work whose result it takes."""
    path = Path(path)
    if path.is_dir() or not path.name:
        raise FewshotError(f"{path} is a folder; name a file to write")
    for folder in path.parents:
        if folder.exists():
            if not folder.is_dir():
                raise FewshotError(f"{path} cannot be written: {folder} is a file, not a folder; choose another place")
            return


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; at the end of the block it takes the place of `path` in one step.

    The folder is made where needed. When the block raises, the old file stays and the temporary one is removed.
    Raises FewshotError for a path that is a folder, OSError where the disk does not take it, also when it was safetensors
    that met the full disk.
    """
    path = Path(path)
    if not path.name:
        raise FewshotError(f"{path} is a folder; name a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A number that no other process has, on this host or another one of a shared folder.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    _remove_leftovers(path)
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


def _remove_leftovers(path: Path) -> None:
    """What processes that were killed while writing `path` left; those of a day ago do not write any more."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # removed by another process
            if time.time() - leftover.stat().st_mtime > _DEAD_SECONDS:
                leftover.unlink()


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


def tensors_header(described: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The beginning of a safetensors file, after which the tensors follow in this order, row by row (`bytes_of`).

    Metadata are sorted by name: the library writes them in another order every time, and equal content is to give equal
    bytes. Raises FewshotError for a dtype that such files do not hold.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, (dtype, shape) in described.items():
        if dtype not in _DTYPES:
            raise FewshotError(f"{name} has dtype {dtype}, which is not written to safetensors files; convert it to one of "
                               f"{', '.join(map(str, _DTYPES))}")
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)  # the reader wants whole words, and rows that begin at them are quicker to read
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of `tensor`; nothing is copied where it is contiguous."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file straight from the tensors' memory (`safetensors.torch.save_file` copies them first).

    Equal tensors and metadata give equal bytes, in whatever order they are given: the largest numbers come first, so that
    each tensor begins at a multiple of their size, and then names decide.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    with Path(path).open("wb") as file:
        file.write(tensors_header({name: (x.dtype, tuple(x.shape)) for name, x in ordered.items()}, metadata or {}))
        for tensor in ordered.values():
            file.write(bytes_of(tensor))


def map_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, the tensors being the file itself, mapped for reading only: pages are read
    when they are used and may be dropped again, and writing to them is a crash. Raises ValueError for any other file."""
    path = Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    if max((entry["data_offsets"][1] for entry in header.values()), default=0) + 8 + length != path.stat().st_size:
        raise ValueError("its length is not what its header says")
    data, found = np.memmap(path, np.uint8, "r", 8 + length), {}
    for name, entry in header.items():
        dtype = next(dtype for dtype, code in _DTYPES.items() if code == entry["dtype"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            found[name] = torch.from_numpy(data[slice(*entry["data_offsets"])]).view(dtype).view(entry["shape"])
    return found, metadata


def write_together(contents: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Replace all of these paths by complete new files, or none where the disk does not take one of them."""
    with ExitStack() as replacements:
        for path, data in contents.items():
            replacements.enter_context(replacing(path)).write_bytes(data)
    return tuple(contents)


def write_atomically(path: str | Path, data: bytes | memoryview) -> Path:
    """Replace `path` by a complete new file with this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)
