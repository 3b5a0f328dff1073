"""Seconds from a cold process to the end of a command, beside `import torch` alone.

    python benchmarks/startup.py [--rounds 5] [--data-root DATA] [--write docs/speed_startup.md]

Every command runs in a process of its own, once a round, so that a noisy machine disturbs all alike; medians and ranges
are over rounds. The processor's seconds (user and system) hardly depend on what else the machine does. Evaluations are of
10,000 5-way 1-shot ProtoNet episodes with features extracted beforehand, to the printed table: a bank of 12,000 rows and
640 features (--features), the data set glyphs with Conv-4 (5 queries a class: its classes are small), and with --data-root
Omniglot with the Conv-4 of experiments/weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
from common import machine
from processes import run
from throughput import bank

from fewshot.core import provenance

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ("import fewshot.cli.evaluate, fewshot.evaluation.evaluate, fewshot.features.source, fewshot.evaluation.store, "
           "fewshot.reporting.accuracy_tables")


def commands(folder: Path, data_root: Path | None) -> dict[str, list[str]]:
    """Label -> arguments of Python. The seed {round} makes every evaluation a new run."""
    cli, common = ["-m", "fewshot"], ["--shots", "1", "--runs", str(folder / "runs"), "--seed", "{round}"]
    found = {"import torch": ["-c", "import torch"], "import of what eval needs": ["-c", IMPORTS],
             "fewshot --version": [*cli, "--version"], "fewshot --help": [*cli, "--help"],
             "fewshot eval --help": [*cli, "eval", "--help"], "fewshot list": [*cli, "list"],
             "fewshot eval --features": [*cli, "eval", "--features", str(folder / "bank.safetensors"), *common],
             "fewshot eval --dataset glyphs": [*cli, "eval", "--dataset", "glyphs", "--queries", "5", *common]}
    if data_root is not None:
        weights = ROOT / "experiments" / "weights" / "conv4_omniglot_background.safetensors"
        found["fewshot eval --dataset omniglot"] = [*cli, "eval", "--dataset", "omniglot", "--weights", str(weights),
                                                    "--data-root", str(data_root), *common]
    return found


def clock(arguments: list[str], number: int) -> tuple[float, float]:
    """(wall seconds, processor seconds) of one process."""
    return run([part.replace("{round}", str(number)) for part in arguments], cwd=ROOT)[:2]


def measure(rounds: int, data_root: Path | None) -> dict[str, list[tuple[float, float]]]:
    with tempfile.TemporaryDirectory() as folder:
        bank().save(Path(folder) / "bank.safetensors")
        wanted = commands(Path(folder), data_root)
        for arguments in wanted.values():
            clock(arguments, rounds)  # extracts features, and brings the files into memory
        found = {label: [] for label in wanted}
        for number in range(rounds):
            for label, arguments in wanted.items():
                found[label].append(clock(arguments, number))
    return found


def page(found: dict[str, list[tuple[float, float]]], rounds: int, loads: tuple[float, float]) -> str:
    versions = provenance.versions()
    lines = ["# Time to start", "",
             "Seconds of a process from its start to its end: median (and range) of "
             f"{rounds} interleaved rounds, files in memory. Evaluations are of 10,000 5-way 1-shot ProtoNet episodes with "
             "features extracted beforehand (--features: 12,000 rows of 640), to the printed table. The processor's seconds "
             "are user and system time, which depend less on what else the machine does. Written by "
             "`python benchmarks/startup.py --write docs/speed_startup.md`.", "",
             f"{machine()}; {torch.get_num_threads()} threads; Python {versions['python']}, torch {versions['torch']}; load "
             f"average {loads[0]:.1f} at the start, {loads[1]:.1f} at the end.", "",
             "| process | seconds | processor's seconds | processor's seconds / import torch |", "|---|--:|--:|--:|"]
    floor = statistics.median(used for _, used in found["import torch"])
    for label, values in found.items():
        wall, used = zip(*values, strict=True)
        lines.append(f"| {label} | {_cell(wall)} | {_cell(used)} | {statistics.median(used) / floor:.2f} |")
    return "\n".join([*lines, ""])


def _cell(seconds: tuple[float, ...]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-root", type=Path, help="folder of the data sets, to measure Omniglot too")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    root = arguments.data_root and arguments.data_root.resolve()
    text = page(measure(arguments.rounds, root), arguments.rounds, (before, os.getloadavg()[0]))
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
