"""Result folders `runs/<key>/`: complete or absent, never half-written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors
from safetensors.torch import save_file

from fewshot.errors import FewshotError
from fewshot.evaluate import Result
from fewshot.run import Run


class Store:
    """Results on disk, one folder a run: run.json, episodes.safetensors and, last, result.json."""

    def __init__(self, root: str | Path = "runs"):
        self.root = Path(root)

    def folder(self, run: Run) -> Path:
        return self.root / run.key

    def save(self, result: Result) -> Path:
        """Write the folder beside its place and move it there in one step; an earlier result of the run is replaced."""
        self.root.mkdir(parents=True, exist_ok=True)
        place = self.folder(result.run)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=self.root))
        try:
            _write_json(temporary / "run.json", result.run.to_dict())
            save_file({name: tensor.contiguous() for name, tensor in result.arrays().items()},
                      temporary / "episodes.safetensors")
            _write_json(temporary / "result.json", result.summary())
            if place.exists():
                shutil.rmtree(place)
            os.replace(temporary, place)
        except OSError as error:
            raise FewshotError(f"could not write the result to {place} ({error}); free disk space or choose another "
                               "folder with --runs; nothing was kept") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return place

    def load(self, run: Run) -> Result | None:
        """The stored result of `run`, or None where there is none."""
        return self.read(self.folder(run)) if (self.folder(run) / "result.json").is_file() else None

    def __iter__(self) -> Iterator[Result]:
        for path in sorted(self.root.glob("*/result.json")):
            if not path.parent.name.startswith("."):
                yield self.read(path.parent)

    @staticmethod
    def read(folder: str | Path) -> Result:
        folder = Path(folder)
        try:
            run = Run.from_dict(json.loads((folder / "run.json").read_text()))
            summary = json.loads((folder / "result.json").read_text())
            with safetensors.safe_open(folder / "episodes.safetensors", framework="pt") as handle:
                arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, json.JSONDecodeError, safetensors.SafetensorError) as error:
            raise FewshotError(f"{folder} holds no readable result ({error}); delete it and evaluate again") from error
        return Result.from_parts(run, arrays, summary)


def _write_json(path: Path, value: dict) -> None:
    with path.open("w") as handle:
        json.dump(value, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
