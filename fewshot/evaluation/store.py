"""Result folders `runs/<key>/`: complete or absent, never half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import safetensors

from fewshot.core import provenance
from fewshot.core.errors import FewshotError, with_remedy
from fewshot.core.files import save_tensors
from fewshot.core.frozen import FrozenDict
from fewshot.evaluation.progress import Parts
from fewshot.evaluation.record import Record
from fewshot.evaluation.result import Result

_OLD = "-old"  # ends the name of a folder that was taken out of its place
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


class Store:
    """Results on disk, one folder a run: run.json, episodes.safetensors and, last, result.json.

    kept   a second folder of such results, which is only read: those that `root` does not have
    """

    def __init__(self, root: str | Path = "runs", kept: str | Path | None = None):
        self.root, self._kept = Path(root), None if kept is None else Store(kept)
        self._known: dict[str, FrozenDict] = {}  # folder -> what its record is compared by

    def folder(self, record: Record) -> Path:
        """Where the result of `record` is put."""
        return self.root / record.key

    def parts(self, record: Record, **measured: object) -> Parts:
        """Where the finished episodes of `record` are kept until all are; `measured`: what else tells their rows apart."""
        made_by = {**provenance.versions(), "commit": provenance.commit(), **measured}
        return Parts(self.root / f".{record.key}.parts", made_by)

    def prepare(self) -> None:
        """Make the folder; raises FewshotError where results cannot be written, best asked before hours of work."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FewshotError(f"cannot make the folder {self.root} ({error}); choose another one for the results") from None
        if not os.access(self.root, os.W_OK):
            raise FewshotError(f"the folder {self.root} is not writable; choose another one for the results")

    def save(self, result: Result) -> Path:
        """Write the folder beside its place and move it there in one step; an earlier result of the run is replaced."""
        self.prepare()
        place, earlier = self.folder(result.record), self._alike(result.record)
        temporary = self.root / f".{place.name}-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            _write_json(temporary / "run.json", result.record.to_dict())
            save_tensors(temporary / "episodes.safetensors", result.arrays())
            _write_json(temporary / "result.json", result.summary())
            _put(temporary, place)
            for folder in earlier:  # the same evaluation under other names of its settings
                if folder != place:
                    shutil.rmtree(folder, ignore_errors=True)
        except (OSError, safetensors.SafetensorError) as error:
            raise FewshotError(f"could not write the result to {place} ({with_remedy(error)}); nothing was kept, "
                               "choose another folder for the results") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return place

    def load(self, record: Record) -> Result | None:
        """The stored result of `record`, or None where there is none. One that was stored before its method gained a
        hyper-parameter, or renamed one, is the result of the same evaluation and is found."""
        for folder in self._alike(record):
            return self.read(folder)
        return None if self._kept is None else self._kept.load(record)

    def __iter__(self) -> Iterator[Result]:
        """All readable results; others are named in a warning. Folders without run.json (a training run also has a
        result.json) are none of ours."""
        for folder in self._folders():
            try:
                yield self.read(folder)
            except FewshotError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        for result in self._kept or ():
            if not self._alike(result.record):
                yield result

    def _folders(self) -> list[Path]:
        for old in self.root.glob(f".*{_OLD}"):  # of a process that was killed
            _put_back(old, self.root / old.name[1:].rsplit("-", 2)[0])
        return [path.parent for path in sorted(self.root.glob("*/run.json"))
                if not path.parent.name.startswith(".") and (path.parent / "result.json").is_file()]

    def _alike(self, record: Record) -> list[Path]:
        """The folders of results of the same evaluation, that under its own key first."""
        if (self.folder(record) / "result.json").is_file():
            return [self.folder(record)]
        found = []
        for folder in self._folders():
            if folder.name not in self._known:  # a folder is named by its content
                with contextlib.suppress(OSError, ValueError):
                    self._known[folder.name] = Record(json.loads((folder / "run.json").read_text())).comparable
            if self._known.get(folder.name) == record.comparable:
                found.append(folder)
        return found

    @staticmethod
    def read(folder: str | Path) -> Result:
        """The result in one folder; raises FewshotError where there is none or it cannot be read."""
        folder = Path(folder)
        try:
            record = Record(json.loads((folder / "run.json").read_text()))
            summary = json.loads((folder / "result.json").read_text())
            with safetensors.safe_open(folder / "episodes.safetensors", framework="pt") as handle:
                arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
            return Result.from_parts(record, arrays, summary)
        except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
            raise FewshotError(f"{folder} holds no readable result ({type(error).__name__}: {error}); delete it and "
                               "evaluate again") from error


def experiment_store(file: str | Path, root: str | Path) -> Store:
    """Results in `root`, and those kept in the repository beside the file of an experiment."""
    return Store(root, kept=kept_folder(file))


def kept_folder(file: str | Path) -> Path:
    return Path(file).parent / "kept"


def _put(folder: Path, place: Path) -> None:
    """Move `folder` to `place`; what is there, perhaps put there this moment by another host, is taken out first, and
    deleted only when another result is in its place. A process that is killed between leaves it to be put back."""
    old = folder.with_name(f"{folder.name}{_OLD}")
    try:
        for _ in range(100):
            try:
                os.replace(folder, place)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                shutil.rmtree(old, ignore_errors=True)  # an earlier one than that in the place
                with contextlib.suppress(FileNotFoundError):
                    os.replace(place, old)
            else:
                return
    finally:
        _put_back(old, place)
    raise OSError(errno.EBUSY, "other processes keep writing this result")


def _put_back(old: Path, place: Path) -> None:
    """Move the folder `old` that was taken out of `place` there again, or delete it where another one is there."""
    try:
        os.rename(old, place)
    except OSError as error:
        if error.errno in _TAKEN:
            shutil.rmtree(old, ignore_errors=True)
        elif error.errno != errno.ENOENT:
            raise


def _write_json(path: Path, value: dict) -> None:
    with path.open("w") as handle:
        json.dump(value, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
