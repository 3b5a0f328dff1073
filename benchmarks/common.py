"""What the benchmarks share: the machine, clocks, interleaved rounds, tables, episodes, easyfsl's methods."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fewshot.core import provenance
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.evaluation.batching import answers
from fewshot.evaluation.scorer import Scorer
from fewshot.methods import METHODS, Method, create_method
from fewshot.methods.contract import TwoStageMethod


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return f"{cpu}, {os.cpu_count()} cores"


def clock() -> Callable[[], float]:
    """Processor time of this process where it has one thread, which other processes hardly disturb; else wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def conditions(*packages: str) -> str:
    """Machine, threads, clock and versions, for the head of a page; absent packages are named as such."""
    versions = provenance.versions()
    found = [f"{name} {importlib.metadata.version(name) if installed(name) else 'absent'}" for name in packages]
    kind = "processor" if clock() is time.process_time else "wall"
    return (f"{machine()}; {torch.get_num_threads()} thread(s), {kind} time; Python {versions['python']}, torch "
            f"{', '.join([versions['torch'], *found])}")


def installed(name: str) -> bool:
    module = {"POT": "ot", "scikit-learn": "sklearn"}.get(name, name)
    return importlib.util.find_spec(module) is not None


def interleave(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every case in every round; in a round each runs once, so that a noisy machine disturbs all alike."""
    now, found = clock(), {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = now()
            case()
            found[name].append(now() - start)
    return found


def seconds_of(call: Callable[[], object], least: float = 0.02, repeats: int = 3) -> float:
    """Median seconds of a call, repeated for at least `least` seconds each time."""
    now, found = clock(), []
    call()
    for _ in range(repeats):
        count, start = 0, now()
        while count == 0 or now() - start < least:
            call()
            count += 1
        found.append((now() - start) / count)
    return statistics.median(found)


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def spread(values: list[float]) -> str:
    return f"{rate(statistics.median(values))} ({rate(min(values))} to {rate(max(values))})"


def markdown(header: list[str], rows: list[list], left: int = 1) -> list[str]:
    """Lines of a table whose first `left` columns are text."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return [f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def clusters(seed: int, classes: int = 20, items: int = 200, dim: int = 640) -> FeatureBank:
    """Clusters whose 1-shot accuracy is about that of miniImageNet features; about half of the entries are zero."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, dim, generator=generator)
    noise = torch.randn(classes, items, dim, generator=generator)
    return FeatureBank((0.3 * centres + noise).relu().flatten(0, 1), torch.arange(classes).repeat_interleave(items))


def feature_methods() -> list[str]:
    """Names of the methods that classify features and have no weights of their own."""
    return [name for name in METHODS if METHODS[name].inputs == "features" and not create_method(name).needs_backbone]


def index_chunks(features: FeatureBank, ways: int, shots: int, episodes: int) -> list:
    """Row numbers of episodes with 15 queries per class, in chunks as `fewshot.evaluate` makes them."""
    sampler = EpisodeSampler(features, ways=ways, shots=shots)
    size = Scorer(features, sampler, None, None, episodes).chunk
    return list(sampler.indices(0, episodes).split(size))


class Contender:
    """A method or function that answers a list of episode batches, and how many episodes it is given per round."""

    def __init__(self, label: str, answer: Method | Callable, chunks: list, seconds: float):
        self.label, self.answer, self.rates, self.now = label, answer, [], clock()
        # Methods with two stages are given several chunks together, as in an evaluation.
        self.all = partial(answers, answer) if isinstance(answer, Method) else partial(map, answer)
        with torch.no_grad():
            answer(chunks[0][:1])  # first calls set up thread pools and caches
            start = self.now()
            answer(chunks[0][:2])
            # A chunk is faster per episode than these two: at least that many fit into `seconds`.
            fit = int(2 * seconds / (self.now() - start))
        size = len(chunks[0])
        self.chunks = [chunks[0][: max(2, fit)]] if fit < size else chunks[: fit // size]
        if isinstance(answer, TwoStageMethod):
            self.chunks = chunks  # its rate depends on how many episodes it solves together
        self.episodes = sum(len(chunk) for chunk in self.chunks)

    def run(self) -> None:
        with torch.no_grad():
            start = self.now()
            for _ in self.all(self.chunks):
                pass
        self.rates.append(self.episodes / (self.now() - start))

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def cell(self) -> str:
        return spread(self.rates)


def call_text(name: str, settings: dict) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


def easyfsl_method(name: str, settings: dict) -> Callable:
    """One of easyfsl's methods, which take one episode at a time; its identity backbone passes features through."""
    import easyfsl.methods

    classifier = getattr(easyfsl.methods, name)(**settings)

    def answer(episodes):
        found = []
        for support, labels, query in zip(episodes.support, episodes.support_labels, episodes.query, strict=True):
            classifier.process_support_set(support, labels)
            found.append(classifier(query))
        return torch.stack(found)

    return answer


def easyfsl_evaluation(features: FeatureBank, ways: int, shots: int, episodes: int) -> Callable[[], float]:
    """easyfsl's full path: its data set of features, task sampler, loader and prototypical networks; returns accuracy.

    `TaskSampler.__init__` passes an argument to torch's Sampler that current versions refuse, so it is made without.
    """
    import easyfsl.methods
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.samplers import TaskSampler
    from torch.utils.data import DataLoader

    labels = features.labels.tolist()
    sampler = object.__new__(TaskSampler)
    sampler.n_way, sampler.n_shot, sampler.n_query, sampler.n_tasks = ways, shots, 15, episodes
    sampler.items_per_label = {}
    for item, label in enumerate(labels):
        sampler.items_per_label.setdefault(label, []).append(item)
    loader = DataLoader(FeaturesDataset(labels, features.features, list(features.class_names)), batch_sampler=sampler,
                        collate_fn=sampler.episodic_collate_fn)
    classifier = easyfsl.methods.PrototypicalNetworks()

    def run() -> float:
        right = total = 0
        with torch.no_grad():
            for support, support_labels, query, query_labels, _ in loader:
                classifier.process_support_set(support, support_labels)
                right += int((classifier(query).argmax(1) == query_labels).sum())
                total += len(query_labels)
        return right / total

    return run
