"""Finished episodes of a run that is not finished: files beside the result's place, from which it goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError, with_remedy
from fewshot.core.files import read_safetensors, replacing, save_tensors

EVERY = 10.0  # seconds between two writes: what a killed run loses at most, and what a short one never writes
_TOTAL = "total."  # names of sums begin with this, those of rows do not


@dataclass(frozen=True, eq=False)
class Part:
    """Results of episodes start .. stop-1.

    rows     name -> one row an episode
    totals   name -> integers, summed over the episodes
    seconds  what they took
    """

    start: int
    stop: int
    rows: dict[str, Tensor]
    totals: dict[str, Tensor]
    seconds: float = 0.0

    def __len__(self) -> int:
        return self.stop - self.start


def summed(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Totals of two ranges together: of integers, so that no order of summation matters."""
    return a | {name: a[name] + values if name in a else values for name, values in b.items()}


class Parts:
    """The parts of one run in `folder`; without a folder nothing is kept.

    made_by   plain values: what else the numbers depend on beside the run. Parts made by anything else are left out.

    Every file is complete or absent, and carries a checksum. Several processes, on several hosts, may write into one folder:
    equal episodes have equal results, so it does not matter whose file stays.
    """

    def __init__(self, folder: Path | None = None, made_by: dict | None = None):
        self.folder, self._made_by = folder, json.loads(json.dumps(made_by))
        self._start = self._stop = 0  # finished and not yet written, as are the totals
        self._totals: dict[str, Tensor] = {}
        self._written = time.perf_counter()

    def add(self, part: Part, arrays: dict[str, Tensor]) -> None:
        """Keep `part`, whose rows are in `arrays` of the whole run; on disk at most EVERY seconds after the last write."""
        if part.start != self._stop:
            self.flush(arrays)
            self._start = part.start
        self._stop, self._totals = part.stop, summed(self._totals, part.totals)
        if time.perf_counter() - self._written >= EVERY:
            self.flush(arrays)

    def flush(self, arrays: dict[str, Tensor]) -> None:
        """Write what was added; raises FewshotError where the disk does not take it (earlier files stay)."""
        if self.folder is None or self._start == self._stop:
            return
        # The rows are taken from the arrays here: kept one by one until now they would split the heap.
        start, stop, now = self._start, self._stop, time.perf_counter()
        tensors = {name: values[start:stop] for name, values in arrays.items()}
        tensors |= {_TOTAL + name: values for name, values in self._totals.items()}
        about = {"start": str(start), "stop": str(stop), "seconds": repr(now - self._written),
                 "made_by": json.dumps(self._made_by), "sha256": _checksum(tensors)}
        try:
            with replacing(self.folder / f"{start:010d}-{stop:010d}.safetensors") as temporary:
                save_tensors(temporary, tensors, about)
        except OSError as error:
            raise FewshotError(f"cannot keep finished episodes in {self.folder} ({with_remedy(error)}); then give the "
                               "same command again: it goes on after those kept before") from error
        self._start, self._totals, self._written = stop, {}, now

    def read(self, episodes: int, is_border: Callable[[int], bool]) -> Iterator[Part]:
        """Parts that do not overlap, in order, of a run of `episodes` that is cut only where `is_border` says. Files that
        are damaged or made by other software are left out with a warning."""
        position = 0
        others: dict[str, int] = {}
        for path in sorted(self.folder.glob("*-*.safetensors") if self.folder else (), key=_place):
            start, end = _place(path)
            if start < position:
                continue
            part = self._load(path, others)
            if part is None or (part.start, -part.stop) != (start, end) or not start < part.stop <= episodes:
                continue
            if is_border(part.start) and is_border(part.stop):
                yield part
                position = part.stop
        for reason, count in others.items():
            warnings.warn(f"{count} file{'s' * (count > 1)} of finished episodes in {self.folder} left out: {reason}; these "
                          "episodes are evaluated again", stacklevel=2)

    def remove(self) -> None:
        """Forget everything: the result is stored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self, path: Path, others: dict[str, int]) -> Part | None:
        """The part in one file, or None and one more count in `others` for the reason why not."""
        reason = "damaged"
        try:
            tensors, about = read_safetensors(path, "part", "readable", "", "")
            made_by = json.loads(about["made_by"])
            if made_by == self._made_by and about["sha256"] == _checksum(tensors):
                rows = {name: values for name, values in tensors.items() if not name.startswith(_TOTAL)}
                totals = {name.removeprefix(_TOTAL): tensors[name] for name in tensors.keys() - rows.keys()}
                return Part(int(about["start"]), int(about["stop"]), rows, totals, float(about["seconds"]))
            if made_by != self._made_by:
                reason = "made with other software or measures (" + ", ".join(
                    f"{name} {made_by.get(name)}, here {value}" for name, value in self._made_by.items()
                    if made_by.get(name) != value) + ")"
        except (FewshotError, OSError, ValueError, KeyError):  # another process may have removed it, too
            pass
        others[reason] = others.get(reason, 0) + 1
        return None


def _place(path: Path) -> tuple[int, int]:
    """(start, -stop) by the name of a file: of two that begin together the longer comes first."""
    start, _, stop = path.stem.partition("-")
    return (int(start), -int(stop)) if start.isdigit() and stop.isdigit() else (-1, -1)


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
