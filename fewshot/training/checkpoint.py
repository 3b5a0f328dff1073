"""Interrupt-safe checkpoints: written atomically, verified on reading; signals; random-number states."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.seeding import isolated_rng

KEEP = 2  # the newest, and the one before it in case the newest is damaged


class TrainingInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM was received and the state is saved; `step` and `signal` say where and which.

    A KeyboardInterrupt, so that `except Exception` in a sweep does not swallow the user's wish to stop.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name} at step {step}, everything is saved; "
                         "resume with the same command")
        self.step, self.signal = step, number


def save_checkpoint(folder: Path, step: int, state: dict) -> Path:
    """Write `state` (tensors and plain containers) and remove all but the last two checkpoints.

    The file is complete or absent (temporary file, fsync, rename). Its name carries the beginning of its sha256:
    PyTorch does not check the CRCs of the files it reads, so a flipped bit would go unnoticed.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:09d}.{_digest(data)}.pt"
    write_atomically(path, data)
    for old in _newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> dict | None:
    """The newest readable checkpoint, None if there is none. A damaged one is skipped with a warning; if all are
    damaged, FewshotError."""
    for leftover in folder.glob("*.tmp"):  # of a process killed while writing
        leftover.unlink(missing_ok=True)
    paths = _newest_first(folder)
    for path in paths:
        try:
            data = path.read_bytes()
            if _digest(data) != path.name.split(".")[1]:
                raise ValueError("its content does not match its checksum")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # any damage, of whatever kind, has the same remedy: the previous checkpoint
            warnings.warn(f"checkpoint {path} is damaged ({error}); trying the one before it", stacklevel=2)
    if paths:
        raise FewshotError(f"none of the {len(paths)} checkpoints in {folder} is readable; delete the folder, or pass "
                           "resume=False, to start again")
    return None


def latest_checkpoint(folder: Path) -> Path | None:
    paths = _newest_first(folder)
    return paths[0] if paths else None


def rng_states() -> dict:
    """States of Python's, NumPy's and PyTorch's global generators, as plain values."""
    algorithm, keys, *rest = cast(tuple, np.random.get_state())  # noqa: NPY002
    states = {"python": random.getstate(), "numpy": [algorithm, torch.from_numpy(keys.astype(np.int64)), *rest],
              "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_rng_states(states: dict) -> None:
    """Put back what `rng_states` returned; CUDA states only where the number of devices is the same."""
    random.setstate(states["python"])
    algorithm, keys, *rest = states["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def isolated_generators(seed: int) -> Iterator[None]:
    """Like `isolated_rng`, but also for Python's and NumPy's global generators, which a method may draw from."""
    before = rng_states()
    try:
        with isolated_rng(seed):
            random.setstate(random.Random(seed).getstate())
            np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002
            yield
    finally:
        set_rng_states(before)


class StopRequest:
    """Which signal asked to stop; None as long as none did."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop looks at; a second SIGINT interrupts at once.

    Previous handlers are put back at the end. Outside the main thread Python does not allow handlers: then nothing is
    installed.
    """
    request = StopRequest()

    def handle(number: int, frame: object) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            # None means that the handler was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
