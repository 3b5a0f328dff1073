"""A run that was interrupted, in whatever way, ends exactly as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot.backbones import read_weights
from fewshot.training import TrainingInterrupted
from fewshot.training.checkpoint import latest_checkpoint, load_checkpoint
from tests.training.runs import fails_at, run, run_in_child

# All that has a state: dropout (random numbers), BatchNorm, Adam's moments, moving average, schedule, best weights.
FULL = {"steps": 24, "ema_decay": 0.9, "warmup_steps": 3, "gradient_clip": 0.3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights, history and last checkpoint of the run without interruption."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, **FULL)
    yield outcome(out)
    torch.set_num_threads(threads)


def outcome(out):
    checkpoint = load_checkpoint(out / "checkpoints")
    return {"weights": read_weights(out / "weights.safetensors")[0], "csv": (out / "history.csv").read_bytes(),
            "learner": checkpoint["learner"], "average": checkpoint["average"], "rng": checkpoint["rng"],
            "moments": checkpoint["optimiser"]["state"], "best_step": checkpoint["best"]["step"]}


def assert_same(a, b, path=""):
    """Equal to the last bit, through nested containers."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{place}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("steps", [(1,), (8,), (13,), (4, 9, 23)])
def test_exceptions(tmp_path, uninterrupted, steps):
    for step in steps:
        with fails_at(step), pytest.raises(ZeroDivisionError):
            run(tmp_path, **FULL)
        torch.rand(5)  # what happens in between does not matter
    run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)


def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path, uninterrupted):
    with fails_at(13), pytest.raises(ZeroDivisionError):
        run(tmp_path, **FULL)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    os.truncate(newest, 100)
    with pytest.warns(UserWarning, match="step-000000010.* is damaged"):
        run(tmp_path, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)


def test_tensorboard_shows_every_step_once(tmp_path):
    with fails_at(14), pytest.raises(ZeroDivisionError):
        run(tmp_path, **FULL)
    result = run(tmp_path, **FULL)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [row["step"] for row in result.history]
    assert [event.value for event in events.Scalars("train/loss")] == \
        pytest.approx([row["loss"] for row in result.history], rel=1e-6)
    assert [event.step for event in events.Scalars("validation/accuracy")] == [8, 16, 24]


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


@pytest.fixture(scope="module")
def children():
    """Start training in a child process. The server imports everything once, so that children start quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs", "torch.utils.tensorboard"])
    processes = []

    def start(out, delay, **changes):
        ours, theirs = context.Pipe()
        process = context.Process(target=run_in_child, args=(str(out), theirs, delay), kwargs=changes, daemon=True)
        process.start()
        processes.append(process)
        assert ours.poll(60) and ours.recv() == "started"
        return process, ours

    yield start
    for process in processes:
        process.kill()
        process.join()


def kill_until_finished(children, out, kills: int, seed: int, **changes) -> int:
    """Kill the run at random moments, then let it finish; how many kills hit a running training."""
    chance, hits = random.Random(seed), 0
    for _ in range(kills):
        process, connection = children(out, 0.04, **changes)
        time.sleep(chance.uniform(0.05, 0.6))
        hits += not connection.poll()
        process.kill()
        process.join(10)
    process, connection = children(out, 0.0, **changes)
    assert connection.poll(120) and connection.recv() == "finished"
    process.join(30)
    return hits


def test_sigkill_at_random_moments(tmp_path, uninterrupted, children):
    assert kill_until_finished(children, tmp_path, 3, seed=0, **FULL)
    assert_same(outcome(tmp_path), uninterrupted)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_many_sigkills(tmp_path, uninterrupted, children):
    hits = 0
    for seed in range(8):
        hits += kill_until_finished(children, tmp_path / str(seed), 6, seed, **FULL)
        assert_same(outcome(tmp_path / str(seed)), uninterrupted)
    assert hits > 20


def test_sigterm_in_a_child(tmp_path, uninterrupted, children):
    process, connection = children(tmp_path, 0.05, **FULL)
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
