"""The folder of a training run: what identifies the run, and its result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fewshot.backbones import Backbone, load_weights, save_weights
from fewshot.backbones.seen import seen_data
from fewshot.backbones.weights import read_method
from fewshot.core import provenance
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.hashing import state_sha256
from fewshot.data.banks import ImageBank
from fewshot.methods.bases.own_weights import describe_method, load_own_state, own_state
from fewshot.methods.contract import Method
from fewshot.statistics import Interval
from fewshot.training.config import LoopConfig
from fewshot.training.types import Trained

if sys.platform != "win32":
    import fcntl

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
HISTORY = ("history.csv", "history.json")
WEIGHTS, RESULT = "weights.safetensors", "result.json"


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A finished training run.

    backbone, method   with the kept weights, in evaluation mode; the method of a supervised run is its objective
    steps, stopped     optimiser steps done, and why it ended: "all steps" or "early stopping"
    best_step          the step whose weights are kept
    validation         validation accuracy of these weights with its interval, None without validation. The best of
                       several validations is biased upwards: report numbers on test classes
    history            rows of history.csv as dictionaries
    weights            the file of the backbone's weights, and of the method's where it has its own
    """

    config: LoopConfig
    backbone: Backbone
    method: Method | nn.Module
    steps: int
    stopped: str
    best_step: int
    validation: Interval | None
    history: list[dict]
    weights: Path

    def __str__(self) -> str:
        found = "not validated"
        if self.validation is not None:
            found = f"validation accuracy {self.validation.percent()} % ({self.validation.n} episodes)"
        return f"{self.steps} steps ({self.stopped}); weights of step {self.best_step}, {found}: {self.weights}"

    __repr__ = __str__  # the networks would fill the screen


def identify(config: LoopConfig, train_bank: ImageBank, val_bank: ImageBank | None, learner: Trained) -> dict:
    """What must be equal for a run to be continued, as plain JSON values: settings, data, and initial weights."""
    run = {"config": config.identity(), "train_bank": _describe(train_bank),
           "val_bank": _describe(val_bank) if config.validate_every and val_bank is not None else None,
           "method": learner.describe(),
           "backbone": learner.backbone.describe(), "initial_weights": state_sha256(learner.state_dict())}
    frozen = sorted(name for name, value in learner.backbone.named_parameters() if not value.requires_grad)
    if frozen:
        run["frozen"] = f"{len(frozen)} parameters, {hashlib.sha256(json.dumps(frozen).encode()).hexdigest()[:16]}"
    return json.loads(json.dumps(run))  # tuples become lists, as they do in the stored one


def note_seen(learner: Trained, train_bank: ImageBank, val_bank: ImageBank | None) -> None:
    """Let the backbone know what it was trained on and chosen by, beside what it knew."""
    found = [seen_data("trained", train_bank), *([] if val_bank is None else [seen_data("chosen", val_bank)])]
    learner.backbone.seen = [*learner.backbone.seen, *(item for item in found if item not in learner.backbone.seen)]


def refuse_other_run(out: Path, stored: dict, run: dict) -> None:
    """Raise FewshotError, naming what differs, unless the run stored in `out` is this one."""
    old, new = _flat(stored), _flat(run)
    names = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
    if names:
        changed = "; ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} here" for name in names)
        raise FewshotError(f"{out} holds a run with other settings ({changed}); use its settings to continue it, "
                           "another folder for a new run, or resume=False to delete it")


def is_finished(out: Path) -> bool:
    return (out / WEIGHTS).is_file()


def discard(out: Path) -> None:
    """Delete the files of a run, and nothing else."""
    (out / WEIGHTS).unlink(missing_ok=True)  # first: what a deletion cut short leaves must not look finished
    for name in (CHECKPOINTS, TENSORBOARD):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (RESULT, *HISTORY):
        (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder for this process; raises FewshotError while another one does. The lock ends with the process,
    however that ends. Where the system has no such locks (Windows) nothing is checked."""
    out.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    with open(out / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FewshotError(f"another process is training in {out}; wait for it or choose another folder") from None
        for name in (WEIGHTS, RESULT, *HISTORY):
            for leftover in out.glob(f"{name}.*.tmp"):  # of a process killed while writing
                leftover.unlink()
        yield


def write_result(out: Path, run: dict, config: LoopConfig, learner: Trained, outcome: dict) -> None:
    """Write result.json and, last, the weights."""
    record = {"run": run, **outcome, "versions": provenance.versions(), "commit": provenance.commit()}
    write_atomically(out / RESULT, json.dumps(record, indent=1).encode())
    described = describe_method(config.title, learner.method)
    method = None if described is None else (own_state(learner.method), described)
    save_weights(learner.backbone, out / WEIGHTS, provenance=record, method=method)


def read_result(out: Path, run: dict, config: LoopConfig, learner: Trained) -> TrainResult:
    """The finished run in `out`; raises FewshotError if it is another one."""
    record = json.loads((out / RESULT).read_text())
    refuse_other_run(out, record["run"], run)
    load_weights(learner.backbone, out / WEIGHTS)
    stored = read_method(out / WEIGHTS)
    if stored is not None:
        assert isinstance(learner.method, nn.Module), "what has weights in the file"
        load_own_state(learner.method, stored[0], out / WEIGHTS)
    learner.eval()
    validation = None
    if record["validation_accuracy"] is not None:
        validation = Interval(record["validation_accuracy"], record["validation_half_width"],
                              config.validation_episodes)
    history = json.loads((out / "history.json").read_text())
    return TrainResult(config, learner.backbone, learner.method, record["steps"], record["stopped"],
                       record["best_step"], validation, history, out / WEIGHTS)


def _describe(bank: ImageBank) -> dict:
    return {"name": bank.name, "split": bank.split, "content_hash": bank.content_hash}


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"config": {"lr": 1}, "backbone": {"name": "a"}} -> {"lr": 1, "backbone.name": "a"}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "parameters":
            flat.update(_flat(value, "" if key == "config" else f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
