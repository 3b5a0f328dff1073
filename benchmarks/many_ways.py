"""What one large episode costs: seconds and memory of every method on features at 1,000 ways, 1 shot and 2,000 queries.

    python benchmarks/many_ways.py [--methods protonet pt_map ...] [--ways 1000] [--queries 2] [--dim 640] [--limit 60]
                                   [--set iterations=20]

`--queries` is per class, `--dim` per crop (cosoc takes several). `--set` gives parameters to the methods: what a method
that takes minutes needs for one step follows from two numbers of steps. Every method is a process of its own with one
thread on the clock of the processor, and answers two episodes: the first sets up what later ones reuse, the second is
clocked. Memory is what the peak rises by over that of the process with the data. A process that takes more than
`--limit` seconds of the processor, or 12 GiB, is ended and named.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from common import clusters, conditions, feature_methods, markdown
from processes import peak_memory, run

from fewshot.episodes.sampler import EpisodeSampler
from fewshot.methods import create_method

MOST_BYTES = 12 << 30  # of addresses


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Print seconds and MiB of one method, in a process that does nothing else."""
    resource.setrlimit(resource.RLIMIT_CPU, (arguments.limit, arguments.limit + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    torch.set_num_threads(1)
    method = create_method(name, **{key: int(value) for key, value in (each.split("=") for each in arguments.set)})
    dim = arguments.dim * getattr(method, "crops", 1)
    features = clusters(0, arguments.ways, 1 + arguments.queries, dim)
    method = method.fit(clusters(1, 64, 20, dim))
    episodes, _ = EpisodeSampler(features, ways=arguments.ways, queries=arguments.queries).sample(features, 0, 2)
    before = peak_memory()
    with torch.inference_mode():
        method(episodes[:1])
        start = time.process_time()
        method(episodes[1:])
    print(time.process_time() - start, peak_memory() - before)


def row(name: str) -> list[str]:
    """Its line of the table."""
    try:
        # The options of this process are those of the child; of a repeated option the last counts.
        command = [Path(__file__).resolve(), *sys.argv[1:], "--one", name]
        seconds, memory = run(command, OMP_NUM_THREADS="1").output.split()[-2:]
    except SystemExit as error:
        why = str(error).splitlines()
        return [name, "too slow" if "code -24" in why[0] else why[-1][:90], ""]
    return [name, f"{float(seconds):.2f}", f"{float(memory):,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=feature_methods())
    parser.add_argument("--ways", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments)
        return
    torch.set_num_threads(1)  # as in the processes; the head of the page says so
    rows = []
    for name in arguments.methods:
        rows.append(row(name))
        print(*rows[-1], file=sys.stderr, flush=True)
    episode = f"{arguments.ways} ways, 1 shot, {arguments.ways * arguments.queries} queries, {arguments.dim} dimensions"
    print(f"{episode}; {conditions()}", "", *markdown(["method", "seconds", "MiB"], rows), sep="\n")


if __name__ == "__main__":
    main()
