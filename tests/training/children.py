"""Training in processes that can be killed, alone or as a team, and what a run leaves behind."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time

import torch

from fewshot.backbones import read_weights
from fewshot.training.checkpoint import load_checkpoint
from tests.training.runs import run_in_child


def outcome(out):
    checkpoint = load_checkpoint(out / "checkpoints")
    return {"weights": read_weights(out / "weights.safetensors")[0], "csv": (out / "history.csv").read_bytes(),
            "learner": checkpoint["learner"], "average": checkpoint["average"],
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


class Children:
    """Starts training in child processes. The server imports everything once, so that children start quickly: also what
    torch's optimisers import when the first one is made."""

    def __init__(self, folder):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training.runs", "torch.utils.tensorboard", "torch._dynamo"])
        self.processes, self.meetings = [], (folder / f"meeting-{n}" for n in itertools.count())

    def start(self, out, delay: float, size: int = 1, of_rank: tuple[dict, ...] = ({}, {}), **changes):
        """[(process, connection)] of `size` processes that train together; `of_rank` are settings of each."""
        started, meeting = [], str(next(self.meetings))
        for rank in range(size):
            ours, theirs = self.context.Pipe()
            settings = {**changes, **of_rank[rank], "team": (rank, size, meeting) if size > 1 else None}
            process = self.context.Process(target=run_in_child, args=(str(out), theirs, delay), kwargs=settings, daemon=True)
            process.start()
            started.append((process, ours))
        self.processes += [process for process, _ in started]
        for _, connection in started:
            assert connection.poll(60) and connection.recv() == "started"
        return started

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def kill_until_finished(children: Children, out, kills: int, seed: int, **settings) -> int:
    """Kill a process of the run at random moments, wait for the others, then let all finish; how many kills hit a
    running training."""
    chance, hits = random.Random(seed), 0
    for _ in range(kills):
        started = children.start(out, 0.02, **settings)
        time.sleep(chance.uniform(0.05, 0.6))
        process, connection = chance.choice(started)
        hits += not connection.poll()
        process.kill()
        for process, _ in started:
            process.join(30)
            assert process.exitcode is not None, "a process goes on without the one that was killed"
    assert ends(children.start(out, 0.0, **settings)) == ["finished"] * settings.get("size", 1)
    return hits


def ends(started) -> list[str]:
    """How the processes ended."""
    found = []
    for process, connection in started:
        assert connection.poll(120), "a process does not end"
        found.append(connection.recv())
        process.join(30)
    return found
