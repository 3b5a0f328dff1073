"""Training speed and memory of MAML, first-order MAML and ANIL, beside learn2learn's.

    python benchmarks/maml.py [--rounds 5] [--threads 1] [--episodes 16] [--cpu-time]
                              [--write docs/speed_maml.md]

One optimiser step on 16 episodes of images (--episodes): Conv-4 with max-pooling and 64 channels, 28x28, 5-way 1-shot,
15 queries per class, 5 inner steps. In every round each contender makes one step, so that a noisy machine disturbs all
alike; ratios are taken within a round. Memory is measured in a process of its own for each. With the defaults it takes
about five minutes.

--cpu-time counts processor time instead of wall time: for a machine that others use too, with one thread.

learn2learn is not a dependency. To have it timed too, run this where `make learn2learn` has installed it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import machine
from processes import peak_memory
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fewshot.backbones import create_backbone
from fewshot.core import provenance
from fewshot.core.team import Team
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method

WAYS, QUERIES, STEPS, RATE = 5, 75, 5, 0.1
ALONE = Team()
# group -> [(label, who, settings)]; the first of a group is what the others are compared with.
CONTENDERS = {
    "MAML, second order": [
        ("learn2learn, its own network", "theirs", {"network": "own"}),
        ("learn2learn, network of this project", "theirs", {}),
        ("learn2learn, its own network, bfloat16 autocast", "theirs", {"network": "own", "half": True}),
        ("this project", "ours", {}),
        ("this project, PyTorch's second derivatives", "ours", {"cheap": False}),
        ("this project, bfloat16", "ours", {"half": True}),
        ("this project, vectorised", "ours", {"vectorise": True, "size": 4}),
        ("this project, checkpointing", "ours", {"checkpoint": True}),
    ],
    "MAML, first order": [
        ("learn2learn, its own network", "theirs", {"network": "own", "first_order": True}),
        ("this project", "ours", {"first_order": True}),
        ("this project, bfloat16", "ours", {"first_order": True, "half": True}),
        ("this project, vectorised", "ours", {"first_order": True, "vectorise": True, "size": 4}),
    ],
    "ANIL": [
        ("learn2learn, its own network", "theirs", {"network": "own", "anil": True}),
        ("this project", "ours", {"method": "anil"}),
        ("this project, bfloat16", "ours", {"method": "anil", "half": True}),
        ("this project, vectorised", "ours", {"method": "anil", "vectorise": True, "size": 4}),
    ],
}
KINDS = {"convolution": ("convolution",), "BatchNorm": ("batch_norm", "_Norm"), "max-pooling": ("max_pool", "gather")}


NOTES = """\
The arithmetic of the convolutions is the same for both. The difference comes from the memory traffic around them: the maps
of the first block have their channels last here, though images of one channel do not suggest it, which makes pooling and
BatchNorm several times faster; and `fewshot.ops.second_order` computes the derivatives of the backward passes of BatchNorm
and of convolutions in fewer passes over the maps than PyTorch. Values and gradients stay those of learn2learn in double
precision (`tests/integrations/test_learn2learn.py`). bfloat16 makes convolutions and traffic cheaper, but its meta-gradients
are coarse: compare it with float32 on validation classes before relying on it.

Vectorising (`torch.func.vmap`) turns the convolutions of several episodes into one grouped convolution. It saves calls,
which counts on a GPU; on CPU the calls are not the bottleneck, grouped convolutions are slower than ordinary ones, and the
graphs of all episodes at once need more memory. Hence `vectorise="auto"`: one episode after the other on CPU, all at once
elsewhere. The same holds for ANIL, whose inner loop has no convolution but whose backbone is vectorised, too."""


def episodes_of_images(count: int) -> tuple[Episodes, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.rand(count, n, 1, 28, 28, generator=generator) for n in (WAYS, QUERIES))
    labels = torch.arange(QUERIES) % WAYS
    return Episodes(support, labels[:WAYS].repeat(count, 1), query, WAYS), labels.repeat(count, 1)


def autocast(half: bool):
    return torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()


def ours(episodes: int, method: str = "maml", steps: int = STEPS, size: int = 1, half: bool = False, cheap: bool = True,
         vectorise: bool = False, team: Team = ALONE, **settings) -> Callable[[], None]:
    """A step as the training loop makes it, in passes of `size` episodes (TrainConfig.accumulate) shared by `team`."""
    backbone = create_backbone("conv4", channels=1, image_size=28)
    learner = create_method(method, inner_lr=RATE, inner_steps=steps, vectorise=vectorise, **settings)
    learner = learner.with_backbone(backbone, WAYS).train()
    if not cheap:
        learner._cheap = lambda device: False
    parameters = list(learner.parameters())
    optimiser = torch.optim.Adam(parameters, 1e-3)
    images, labels = episodes_of_images(episodes)
    passes = torch.arange(episodes).split(size)[team.rank :: team.size]

    def step():
        optimiser.zero_grad()
        for some in passes:
            with autocast(half):
                loss, _ = learner.loss(images[some], labels[some])
            (loss * len(some) / episodes).backward()
        team.sum_gradients(parameters)
        optimiser.step()

    return step


def theirs(episodes: int, network: str = "this project's", first_order: bool = False, anil: bool = False,
           half: bool = False, team: Team = ALONE) -> Callable[[], None]:
    """A step as in learn2learn's examples: clone, adapt, backward, one task after the other."""
    import learn2learn

    if network == "own":
        body = nn.Sequential(learn2learn.vision.models.ConvBase(hidden=64, channels=1, max_pool=True), nn.Flatten())
    else:
        body = create_backbone("conv4", channels=1, image_size=28).train()
    head = nn.Linear(64, WAYS)
    learner = learn2learn.algorithms.MAML(head if anil else nn.Sequential(body, head), lr=RATE, first_order=first_order)
    parameters = [*learner.parameters(), *(body.parameters() if anil else ())]
    optimiser = torch.optim.Adam(parameters, 1e-3)
    images, labels = episodes_of_images(episodes)

    def step():
        optimiser.zero_grad()
        for e in range(team.rank, episodes, team.size):
            task = learner.clone()
            with autocast(half):
                support, query = images.support[e], images.query[e]
                if anil:
                    support, query = body(support), body(query)
                for _ in range(STEPS):
                    task.adapt(F.cross_entropy(task(support), images.support_labels[e]))
                loss = F.cross_entropy(task(query), labels[e])
            loss.backward()
        team.sum_gradients(parameters)
        for p in parameters:
            p.grad.mul_(1 / episodes)
        optimiser.step()

    return step


def build(who: str, settings: dict, episodes: int) -> Callable[[], None]:
    torch.manual_seed(0)  # learn2learn's networks take their weights from the global generator
    return {"ours": ours, "theirs": theirs}[who](episodes, **settings)


def rates(contenders: list[tuple], episodes: int, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Episodes per second of every contender in every round."""
    steps = {label: build(who, settings, episodes) for label, who, settings in contenders}
    for step in steps.values():
        step()  # sets up thread pools and caches
    found = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            start = clock()
            step()
            found[label].append(episodes / (clock() - start))
    return found


def memory(who: str, settings: dict) -> float:
    """Megabytes that a step adds to the largest memory of a process forked for it."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure, args=(queue, who, settings))
    process.start()
    process.join()
    return queue.get()


def _measure(queue, who: str, settings: dict) -> None:
    # Passes follow one another: two of them reach the peak of all.
    step = build(who, settings, 2 * settings.get("size", 1))
    before = peak_memory()
    step()
    queue.put(peak_memory() - before)


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of the time spent in each kind of operator."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    spent = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        spent[kind] += event.self_cpu_time_total
    return {kind: value / sum(spent.values()) for kind, value in spent.items()}


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(contenders: list[tuple], found: dict[str, list[float]], peaks: list[float]) -> list[str]:
    first = found[contenders[0][0]]
    lines = ["| | episodes/s | ratio | added memory, MB |", "|---|--:|--:|--:|"]
    for (label, _, _), peak in zip(contenders, peaks, strict=True):
        ratio = spread([a / b for a, b in zip(found[label], first, strict=True)], 2)
        lines.append(f"| {label} | {spread(found[label])} | {ratio} | {peak:.0f} |")
    return lines


def page(arguments: argparse.Namespace, with_learn2learn: bool) -> str:
    def chosen(group):
        return [c for c in CONTENDERS[group] if with_learn2learn or c[1] == "ours"]

    episodes = arguments.episodes
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    load = os.getloadavg()[0]
    # First, while this process is small and has started no threads.
    peaks = {group: [memory(*contender[1:]) for contender in chosen(group)] for group in CONTENDERS}
    inner = {(steps, size): [memory("ours", {"steps": steps, "size": size, "checkpoint": checkpoint})
                             for checkpoint in (False, True)] for steps in (5, 20) for size in (1, 4)}
    found = {group: rates(chosen(group), episodes, arguments.rounds, clock) for group in CONTENDERS}
    profiles = {label: shares(build(who, settings, 4)) for label, who, settings in chosen("MAML, second order")
                if label in ("learn2learn, its own network", "this project", "this project, bfloat16")}
    versions = provenance.versions()
    theirs_version = importlib.metadata.version("learn2learn") if with_learn2learn else "absent"
    lines = ["# Speed of gradient-based methods", "",
             "Episodes per second in training: Conv-4 with max-pooling, 64 channels, 28x28, 5-way 1-shot, 15 queries per "
             f"class, 5 inner steps, meta-batch {episodes}; median (and range) of {arguments.rounds} interleaved rounds. "
             "Ratios are to the first row, taken within a round. Written by `python benchmarks/maml.py --write "
             "docs/speed_maml.md`.", "",
             f"{machine()}; {torch.get_num_threads()} thread(s), "
             f"{'processor' if arguments.cpu_time else 'wall'} time; Python {versions['python']}, torch "
             f"{versions['torch']}, learn2learn {theirs_version}; load average {load:.1f} at the start, "
             f"{os.getloadavg()[0]:.1f} at the end.", "",
             "All compute one episode at a time (`accumulate` = the meta-batch) except \"vectorised\", which takes four "
             "episodes at once. learn2learn's own network is its `ConvBase` with max-pooling. Added memory is what one step "
             "adds to the peak of a process.", ""]
    for group in CONTENDERS:
        lines += [f"## {group}", "", *table(chosen(group), found[group], peaks[group]), ""]
    lines += ["## What bounds it", "", "Share of the processor time of a second-order step by kind of operator:", "",
              f"| | {' | '.join([*KINDS, 'the rest'])} |", f"|---|{'--:|' * (len(KINDS) + 1)}"]
    lines += [f"| {label} | {' | '.join(f'{100 * value:.0f} %' for value in kinds.values())} |"
              for label, kinds in profiles.items()]
    lines += ["", NOTES, "", "## Memory of the inner steps", "",
              "`checkpoint=True` keeps the weights of each inner step and computes the rest again. Without `accumulate` "
              "the graphs of the whole meta-batch live until the backward pass; with `accumulate` = the meta-batch, that of "
              "one episode.", "",
              "| inner steps | episodes per pass | added memory, MB | with checkpointing, MB |", "|--:|--:|--:|--:|"]
    lines += [f"| {steps} | {size} | {plain:.0f} | {checkpointed:.0f} |"
              for (steps, size), (plain, checkpointed) in inner.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=16, help="meta-batch, a multiple of 4")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--write", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="gym|learn2learn")
    torch.set_num_threads(arguments.threads)
    with_learn2learn = importlib.util.find_spec("learn2learn") is not None
    text = page(arguments, with_learn2learn)
    print(text)
    if not with_learn2learn:
        print(__doc__.split("\n\n", 4)[4])
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
