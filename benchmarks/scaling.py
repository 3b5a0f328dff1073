"""One process against two, and 10,000 episodes against 1,000,000: speed, start-up, peak memory, equality of the results.

    python benchmarks/scaling.py [--episodes 200000] [--methods protonet,paddle,pt_map] [--rounds 3] [--skip-memory]

640-dimensional features, 5-way 1-shot, 15 queries per class, through the command line: every run is a process of its own,
timed from its start to its end, with start-up (imports, loading, the workers' own imports) shown apart. One process has one
thread, two workers have one each. Rounds alternate, so that a noisy machine disturbs all alike; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from processes import peak_of

from fewshot.core import provenance
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.store import Store

_METHOD_EPISODES = {"protonet": 1, "paddle": 20, "pt_map": 20}  # that many times fewer, for about the same time


def bank(path: Path) -> Path:
    """12,000 random rows, the size of miniImageNet's test split."""
    generator = torch.Generator().manual_seed(0)
    return FeatureBank(torch.randn(12_000, 640, generator=generator).relu(), torch.arange(12_000) % 20, name="random",
                       split="test").save(path)


def evaluation(features: Path, runs: Path, method: str, episodes: int, workers: int = 1) -> tuple[float, float, float]:
    """(seconds from start to end, peak memory of the first process in MiB, seconds of the evaluation itself)."""
    seconds, peak = peak_of("fewshot", "--quiet", "eval", "--features", features, "--runs", runs, "--shots", 1, "--method",
                            method, "--episodes", episodes, "--workers", workers, OMP_NUM_THREADS="1")
    (stored,) = Store(runs)
    return seconds, peak, stored.seconds


def same(a: Path, b: Path) -> bool:
    """Whether two folders hold the same result to the last bit."""
    (one,), (two,) = Store(a), Store(b)
    return one.fingerprint == two.fingerprint and all(torch.equal(x, two.arrays()[n]) for n, x in one.arrays().items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200_000, help="of protonet; slower methods take fewer")
    parser.add_argument("--methods", default="protonet,paddle,pt_map", help="separated by commas; '': only the memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="10000,1000000", help="numbers of episodes whose peak memory is compared")
    parser.add_argument("--skip-memory", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(provenance.versions()), f"\nload average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        features = bank(folder / "bank.safetensors")
        print("| method | episodes | 1 process, s | 2 workers, s | ratio | ratio without start-up | equal |\n"
              "|---|--:|--:|--:|--:|--:|---|")
        for method in filter(None, arguments.methods.split(",")):
            episodes = arguments.episodes // _METHOD_EPISODES.get(method, 20)
            found: dict[int, list] = {1: [], 2: []}
            for round_ in range(arguments.rounds):
                for workers in (1, 2):
                    runs = folder / f"{method}-{workers}-{round_}"
                    found[workers].append(evaluation(features, runs, method, episodes, workers))
            start = {w: statistics.median(whole - inside for whole, _, inside in found[w]) for w in (1, 2)}
            whole = {w: statistics.median(x[0] for x in found[w]) for w in (1, 2)}
            equal = same(folder / f"{method}-1-0", folder / f"{method}-2-0")
            print(f"| {method} | {episodes:,} | {whole[1]:.1f} | {whole[2]:.1f} | {whole[1] / whole[2]:.2f} | "
                  f"{(whole[1] - start[1]) / (whole[2] - start[2]):.2f} | {'yes' if equal else 'NO'} |", flush=True)
        if not arguments.skip_memory:
            print("\n| episodes of protonet | from start to end, s | peak memory, MiB |\n|--:|--:|--:|")
            for episodes in map(int, arguments.memory.split(",")):
                seconds, peak, _ = evaluation(features, folder / f"memory-{episodes}", "protonet", episodes)
                print(f"| {episodes:,} | {seconds:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
