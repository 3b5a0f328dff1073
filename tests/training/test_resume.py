"""A run that was interrupted, in whatever way, ends exactly as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot.training import TrainingInterrupted
from fewshot.training.checkpoint import latest_checkpoint, load_checkpoint
from tests.training.children import Children, assert_same, kill_until_finished, outcome
from tests.training.runs import KINDS, fails_at, run

# All that has a state: dropout (random numbers), BatchNorm, Adam's moments, moving average, schedule, best weights.
FULL = {"ema_decay": 0.9, "warmup_steps": 3, "gradient_clip": 0.3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights, history and last checkpoint of the run without interruption."""
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, **FULL)
    return outcome(out)


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("meetings"))
    yield children
    children.end()


@pytest.mark.parametrize("steps", [(1,), (13,), pytest.param((8,), marks=pytest.mark.slow),
                                   pytest.param((4, 9, 23), marks=pytest.mark.slow)])
def test_exceptions(tmp_path, uninterrupted, steps):
    for step in steps:
        with fails_at(step), pytest.raises(ZeroDivisionError):
            run(tmp_path, **FULL)
        torch.rand(5)  # what happens in between does not matter
    run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path, uninterrupted):
    with fails_at(13), pytest.raises(ZeroDivisionError):
        run(tmp_path, **FULL)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    os.truncate(newest, 100)
    with pytest.warns(UserWarning, match="step-000000010.* is damaged"):
        run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)


@pytest.mark.slow
def test_tensorboard_shows_every_step_once(tmp_path):
    with fails_at(14), pytest.raises(ZeroDivisionError):
        run(tmp_path, **FULL)
    result = run(tmp_path, **FULL)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [row["step"] for row in result.history]
    assert [event.value for event in events.Scalars("train/loss")] == \
        pytest.approx([row["loss"] for row in result.history], rel=1e-6)
    assert [event.step for event in events.Scalars("validation/accuracy")] == [8, 16, 24]


@pytest.mark.slow
def test_sigterm_in_this_process_finishes_the_step_and_puts_the_handler_back(tmp_path, uninterrupted, monkeypatch):
    """The signal comes in the middle of a step, and once in the middle of a validation."""
    from fewshot.training import validation

    def signal_once(function):
        sent = []

        def wrapped(*args, **kwargs):
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            return function(*args, **kwargs)
        return wrapped

    def stand_in(number, frame):
        raise AssertionError("the handler of before must not be called during training")

    before = signal.signal(signal.SIGTERM, stand_in)
    try:
        with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted) as stopped:
            patch.setattr(torch.nn.functional, "cross_entropy", signal_once(torch.nn.functional.cross_entropy))
            run(tmp_path, **FULL)
        assert signal.getsignal(signal.SIGTERM) is stand_in
        assert stopped.value.step == 1 and load_checkpoint(tmp_path / "checkpoints")["step"] == 1
        assert "interrupted by SIGTERM at step 1" in str(stopped.value) and "same command" in str(stopped.value)
        with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted) as stopped:
            patch.setattr(validation, "embed", signal_once(validation.embed))
            run(tmp_path, **FULL)
        assert stopped.value.step == 8
        assert load_checkpoint(tmp_path / "checkpoints")["history"][-1]["validation_accuracy"] is None
    finally:
        signal.signal(signal.SIGTERM, before)
    run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)


@pytest.mark.parametrize("kind", ["episodic", pytest.param("supervised", marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(tmp_path, children, kind):
    KINDS[kind](tmp_path / "whole", **FULL)
    assert kill_until_finished(children, tmp_path / "killed", 3, seed=0, kind=kind, **FULL)
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_many_sigkills(tmp_path, uninterrupted, children):
    hits = 0
    for seed in range(8):
        hits += kill_until_finished(children, tmp_path / str(seed), 6, seed, **FULL)
        assert_same(outcome(tmp_path / str(seed)), uninterrupted)
    assert hits > 20


@pytest.mark.slow
def test_sigterm_in_a_child(tmp_path, uninterrupted, children):
    [(process, connection)] = children.start(tmp_path, 0.03, **FULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "checkpoints").glob("*.pt")):  # before the first one SIGTERM still ends the process at once
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert connection.poll(30)
    message = connection.recv()
    assert message.startswith("interrupted by SIGTERM at step")
    step = load_checkpoint(tmp_path / "checkpoints")["step"]
    assert f"at step {step}," in message
    run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)
    assert [row["step"] for row in json.loads((tmp_path / "history.json").read_text())][-1] == 24
