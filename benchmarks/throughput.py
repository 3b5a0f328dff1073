"""Episodes per second of cached-feature evaluation, beside the bare gather of the same features; peak memory.

    python benchmarks/throughput.py [--method protonet] [--episodes 10000] [--repeats 5]

640-dimensional features, 5-way 1-shot, 15 queries per class, sampling included. Evaluation and gather alternate, so that
a noisy machine disturbs both alike; medians are printed. Peak memory is that of a fresh process per number of episodes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import processes
import torch

from fewshot.core import provenance
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run

CHUNK = 16  # episodes a gather: 16 x 80 x 640 floats stay in the second-level cache


def bank() -> FeatureBank:
    """12,000 random rows, the size of miniImageNet's test split."""
    generator = torch.Generator().manual_seed(0)
    return FeatureBank(torch.randn(12_000, 640, generator=generator).relu_(), torch.arange(12_000) % 20, name="random")


def time_evaluation(features: FeatureBank, method: str, episodes: int) -> float:
    start = time.perf_counter()
    evaluate(Run(dataset="random", backbone="none", method=method, episodes=episodes), features)
    return time.perf_counter() - start


def time_gather(features: FeatureBank, episodes: int) -> float:
    """Copy the rows of every episode, with row numbers drawn beforehand."""
    drawn = EpisodeSampler(features).indices(0, episodes)
    rows = torch.cat([drawn.support, drawn.query], 1)
    out = torch.empty(CHUNK * rows.shape[1], features.features.shape[1])
    start = time.perf_counter()
    for begin in range(0, episodes, CHUNK):
        chosen = rows[begin : begin + CHUNK].reshape(-1)
        torch.index_select(features.features, 0, chosen, out=out[: len(chosen)])
    return time.perf_counter() - start


def time_sampling(features: FeatureBank, episodes: int) -> float:
    start = time.perf_counter()
    EpisodeSampler(features).indices(0, episodes)
    return time.perf_counter() - start


def peak_memory(method: str, episodes: int, **environment: str) -> float:
    """MiB at the peak of a fresh process that makes a bank and evaluates `episodes` (0: that only makes the bank)."""
    return float(processes.run([__file__, "--method", method, "--peak", episodes], **environment).output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="protonet")
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=int, help="only evaluate this many episodes and print the peak memory (MiB)")
    arguments = parser.parse_args()
    features = bank()
    if arguments.peak is not None:
        if arguments.peak:
            time_evaluation(features, arguments.method, arguments.peak)
        print(processes.peak_memory())
        return
    time_evaluation(features, arguments.method, 512)  # first calls set up thread pools
    clocks = {"evaluation": lambda: time_evaluation(features, arguments.method, arguments.episodes),
              "sampling": lambda: time_sampling(features, arguments.episodes),
              "bare gather": lambda: time_gather(features, arguments.episodes)}
    seconds = {name: [] for name in clocks}
    for _ in range(arguments.repeats):
        for name, clock in clocks.items():
            seconds[name].append(clock())
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{arguments.method}, 640-d, 5-way 1-shot, 75 queries, {arguments.episodes} episodes, median of "
          f"{arguments.repeats}; {torch.get_num_threads()} threads, {platform.machine()}, torch "
          f"{provenance.versions()['torch']}")
    print(f"{'':14}{'episodes/s':>12}{'spread':>18}{'time / gather':>16}")
    for name, values in seconds.items():
        rates = sorted(arguments.episodes / v for v in values)
        print(f"{name:14}{arguments.episodes / median[name]:12,.0f}{f'{rates[0]:,.0f}..{rates[-1]:,.0f}':>18}"
              f"{median[name] / median['bare gather']:16.2f}")
    for episodes in (1_000, 100_000):
        print(f"peak memory, {episodes:>7,} episodes: {peak_memory(arguments.method, episodes):,.0f} MiB")


if __name__ == "__main__":
    main()
