"""Second-order MAML on two cores: two threads, or two processes that share a step, beside learn2learn's.

    python benchmarks/maml_two_cores.py [--rounds 7] [--episodes 16] [--write docs/speed_maml_two_cores.md]

The step of benchmarks/maml.py, wall time. Every contender lives in processes of its own which wait while the others run; in
every round each makes one step, and ratios are taken within a round. Wall time says little on a machine that others use,
unless these processes go before theirs (as root: `echo -20 > /proc/self/autogroup` in the shell that starts this).

Two processes are what `torchrun --nproc-per-node=2 -m fewshot train` starts: each computes half of the episodes on one
thread, gradients are summed over both. learn2learn leaves that to its user; to tell what the division gives from what this
project gives, its step is divided here in the same way, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from common import machine
from maml import build, spread

from fewshot.core import provenance
from fewshot.core.team import Team

# (label, who, settings, processes); each process gets two threads divided by their number
CONTENDERS = [
    ("learn2learn, its own network", "theirs", {"network": "own"}, 1),
    ("learn2learn, divided among two processes", "theirs", {"network": "own"}, 2),
    ("this project", "ours", {}, 1),
    ("this project, bfloat16", "ours", {"half": True}, 1),
    ("this project, two processes", "ours", {}, 2),
    ("this project, two processes, bfloat16", "ours", {"half": True}, 2),
]
NOTES = """\
Training in two processes gives the loss curve of one process to rounding (`tests/training/test_parallel.py`), so it costs no
accuracy. It beats two threads because most operators of a 28x28 episode are too small to be divided: a thread waits for the
other at every one of them, a process once a step. Each process adds the memory that docs/speed_maml.md gives for one; in
bfloat16 the model of `experiments/maml_omniglot.py` was trained (97.65 ± 0.06 and 99.43 ± 0.02 at 5-way 1- and 5-shot)."""


class Crew:
    """The processes of one contender."""

    def __init__(self, who: str, settings: dict, processes: int, episodes: int):
        context = multiprocessing.get_context("spawn")
        meeting = tempfile.mktemp(prefix="fewshot-crew-")  # noqa: S306 - gloo makes the file itself
        self.pipes = []
        for rank in range(processes):
            ours, childs = context.Pipe()
            context.Process(target=_work, args=(childs, meeting, rank, processes, who, settings, episodes),
                            daemon=True).start()
            self.pipes.append(ours)
        for pipe in self.pipes:
            pipe.recv()

    def step(self) -> None:
        for pipe in self.pipes:
            pipe.send(True)
        for pipe in self.pipes:
            pipe.recv()

    def dismiss(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)


def _work(pipe, meeting: str, rank: int, processes: int, who: str, settings: dict, episodes: int) -> None:
    warnings.filterwarnings("ignore", module="gym|learn2learn")
    torch.set_num_threads(2 // processes)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    step = build(who, settings | {"team": Team(rank, processes, torch.device("cpu"))}, episodes)
    step()  # sets up thread pools and caches
    pipe.send(True)
    while pipe.recv():
        step()
        pipe.send(True)


def page(contenders: list[tuple], episodes: int, rounds: int) -> str:
    load = os.getloadavg()[0]
    crews = {label: Crew(who, settings, processes, episodes) for label, who, settings, processes in contenders}
    found = {label: [] for label in crews}
    for _ in range(rounds):
        for label, crew in crews.items():
            start = time.perf_counter()
            crew.step()
            found[label].append(episodes / (time.perf_counter() - start))
    for crew in crews.values():
        crew.dismiss()
    first = found[contenders[0][0]]
    versions = provenance.versions()
    lines = ["# Speed of second-order MAML on two cores", "",
             "Episodes per second in training: Conv-4 with max-pooling, 64 channels, 28x28, 5-way 1-shot, 15 queries per "
             f"class, 5 inner steps, meta-batch {episodes}; wall time, median (and range) of {rounds} interleaved rounds. "
             "Ratios are to the first row, taken within a round. Written by `python benchmarks/maml_two_cores.py --write "
             "docs/speed_maml_two_cores.md`.", "",
             f"{machine()}; Python {versions['python']}, torch {versions['torch']}; load average {load:.1f} at the start, "
             f"{os.getloadavg()[0]:.1f} at the end.", "",
             "| | processes x threads | episodes/s | ratio |", "|---|--:|--:|--:|"]
    for label, _, _, processes in contenders:
        ratio = spread([a / b for a, b in zip(found[label], first, strict=True)], 2)
        lines.append(f"| {label} | {processes} x {2 // processes} | {spread(found[label])} | {ratio} |")
    return "\n".join([*lines, "", NOTES, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--episodes", type=int, default=16, help="meta-batch")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    with_learn2learn = importlib.util.find_spec("learn2learn") is not None
    if not with_learn2learn:
        print("learn2learn is not installed here (`make learn2learn`): it is left out")
    text = page([c for c in CONTENDERS if with_learn2learn or c[1] == "ours"], arguments.episodes, arguments.rounds)
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
