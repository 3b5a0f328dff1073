"""The benchmark suite: how fast everything is on this machine, beside its floor and beside other libraries.

    python benchmarks/suite.py [--quick] [--only pipeline methods peers backbones training memory ...]
                               [--keep suite.json] [--write docs/benchmarks.md] [--figure docs/images/benchmarks.png]

Sections: `pipeline` is sampling, gathering and 10,000 ProtoNet episodes from row numbers to results, beside easyfsl's full
path; `methods` every method on cached features at three protocols, over its floor (benchmarks/floors.py), with 640 features
and in the other two sections with 64 and 2048; `peers` easyfsl, scikit-learn and POT at equal settings; `backbones` images
per second; `training` one optimiser step of each learner; `memory` peaks of fresh processes. In every section contenders
run in turns, ratios are within the run, and with one thread (the default) the clock is the processor's; `pipeline_two` and
`peers_two` are the same with two threads and the clock on the wall.

--keep FILE holds the measurements: sections not asked for with --only are taken from it, so that the page can be made
in several short runs; those that it does not hold stay in the page as they are. --quick takes a minute or two. easyfsl,
scikit-learn and POT are timed where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import (
    clock,
    clusters,
    conditions,
    easyfsl_evaluation,
    feature_methods,
    index_chunks,
    installed,
    interleave,
    seconds_of,
)
from floors import FLOORS, Rates, Shape, dirichlet_mixture
from peers import peers
from throughput import peak_memory
from torch.utils.flop_counter import FlopCounterMode

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.methods import Method, create_method
from fewshot.methods.contract import TwoStageMethod
from fewshot.ops import dirichlet
from fewshot.training import TrainConfig
from fewshot.training.learner import make_learner

PROTOCOLS = {"5w1s": (5, 1), "5w5s": (5, 5), "20w5s": (20, 5)}
LEFT_OUT = ("methods64", "methods2048", "pipeline_two", "peers_two", "memory")  # with --quick
SLOWEST = 4.0  # seconds of an episode, by its floor, above which a method is not run
LEAST, LONGEST = 16, 1.5  # episodes of a method's call, or seconds: with few episodes, calls of operators count too much
RATES_HOLD = 5.0  # seconds after which the speeds of this machine are measured again
# Learner -> (method, its parameters, options of conv4 at 28 pixels): maps instead of vectors where a method needs them.
MAPS = {"pools": 2}
LEARNERS = {"protonet": ({}, {}), "matching_net": ({}, {}), "matching_net full context": ({"full_context": True}, {}),
            "relation_net": ({}, MAPS), "dn4": ({}, MAPS), "ridge": ({}, {}), "maml": ({"inner_steps": 5}, {}),
            "maml first order": ({"inner_steps": 5, "first_order": True}, {}), "anil": ({"inner_steps": 5}, {}),
            "boil": ({"inner_steps": 5}, {}), "meta_sgd": ({}, {}), "proto_maml": ({"inner_steps": 5}, {}),
            "reptile": ({"inner_steps": 5}, {})}


def pipeline(quick: bool) -> dict:
    """Seconds per episode of every stage, in turns: {protocol: {stage: [seconds]}}."""
    found, bank = {}, wide_bank()
    for protocol in ("5w1s", "20w5s"):
        ways, shots = PROTOCOLS[protocol]
        episodes = 2000 // (ways // 5) if quick else 10_000
        chunks = index_chunks(bank, ways, shots, episodes)
        rows = [torch.cat([chunk.support, chunk.query], 1).flatten() for chunk in chunks]
        out = torch.empty(len(rows[0]), bank.features.shape[1])
        sampler = EpisodeSampler(bank, ways=ways, shots=shots)
        run = Run(dataset="random", backbone="none", method="protonet", episodes=episodes, ways=ways, shots=shots)
        # (what is done, episodes that it takes)
        cases = {"row numbers": (lambda s=sampler, n=episodes: s.indices(0, n), episodes),
                 "bare gather": (lambda r=rows, o=out: [torch.index_select(bank.features, 0, some, out=o[: len(some)])
                                                        for some in r], episodes),
                 "gather": (lambda c=chunks: sum(len(chunk.gather(bank)) for chunk in c), episodes),
                 "evaluation": (lambda r=run: evaluate(r, bank), episodes)}
        if installed("easyfsl"):
            few = 100 // (ways // 5)
            cases["easyfsl evaluation"] = easyfsl_evaluation(bank, ways, shots, few), few
        for case, _ in cases.values():
            case()
        seconds = interleave({name: case for name, (case, _) in cases.items()}, 3 if quick else 5)
        found[protocol] = {name: [value / cases[name][1] for value in values] for name, values in seconds.items()}
    return found


def wide_bank(dim: int = 640) -> FeatureBank:
    """12,000 random rows, the size of miniImageNet's test split."""
    generator = torch.Generator().manual_seed(0)
    return FeatureBank(torch.randn(12_000, dim, generator=generator).relu(), torch.arange(12_000) % 20, name="random")


def gather_bandwidth(bank: FeatureBank, chunks: list) -> float:
    rows = torch.cat([chunks[0].support, chunks[0].query], 1).flatten()
    out = torch.empty(len(rows), bank.features.shape[1])
    some = [torch.cat([chunk.support, chunk.query], 1).flatten()[: len(rows)] for chunk in chunks[:8]]
    seconds = seconds_of(lambda: [torch.index_select(bank.features, 0, r, out=out[: len(r)]) for r in some])
    return sum(map(len, some)) * bank.features[0].nbytes / seconds


def methods(quick: bool, dim: int = 640) -> dict:
    """{protocol: {method: {rates, iterations, floors, elementwise}}}; an episode is gathered and answered. Each round has a
    floor of its own, measured in the same seconds: a shared machine is now faster, now slower."""
    found, bank, base, now = {}, clusters(0, dim=dim), clusters(1, dim=dim), clock()
    for protocol, (ways, shots) in PROTOCOLS.items():
        chunks, shape = index_chunks(bank, ways, shots, 256), Shape(ways, ways * shots, ways * 15, dim)
        rates = Rates(gather_bandwidth(bank, chunks))
        cases, iterations, here = {}, {}, found.setdefault(protocol, {})
        for name in feature_methods():
            method = create_method(name).fit(base)
            planned = next((getattr(method, key) for key in ("outer", "layers", "iterations") if hasattr(method, key)), 1)
            if sum(rates.floor(name, shape, planned)) > (SLOWEST / 20 if quick else SLOWEST):
                continue
            try:
                cases[name], iterations[name] = prepared(name, method, bank, chunks, 0.02 if quick else 0.05)
            except FewshotError:  # DN4 where an item has fewer descriptors than it looks for
                continue
            here[name] = {"rates": [], "iterations": iterations[name], "floors": [], "elementwise": []}
        for _ in range(3):
            measured = -RATES_HOLD
            for name, (case, episodes) in cases.items():
                if time.monotonic() - measured > RATES_HOLD:
                    rates, measured = Rates(gather_bandwidth(bank, chunks)), time.monotonic()
                floor, elementwise = rates.floor(name, shape, iterations[name])
                start = now()
                case()
                for key, value in (("rates", episodes / (now() - start)), ("floors", floor), ("elementwise", elementwise)):
                    here[name][key].append(value)
    return found


def prepared(name: str, method: Method, bank: FeatureBank, chunks: list,
             seconds: float) -> tuple[tuple[Callable, int], float]:
    """((gathers and answers some episodes, how many), mean iterations as the floor takes them): as many episodes as take
    about `seconds`, or one."""
    now = clock()

    def run(some: list) -> list[float]:
        with torch.inference_mode():
            found = [extra.get("iterations") for _, extra in answers(method, (chunk.gather(bank) for chunk in some))]
        return [float(taken.double().mean()) for taken in found if taken is not None]

    start = now()
    taken = run([chunks[0][:1]])
    each, size = now() - start, len(chunks[0])
    if each < 1:  # else the first calls, which set up thread pools and caches, do not matter
        start = now()
        taken = run([chunks[0][:2]])
        each = (now() - start) / 2
    # A chunk is faster per episode than these two.
    fit = max(1, min(LEAST, int(LONGEST / each)), int(4 * seconds / each))
    some = [chunks[0][:fit]] if fit < size else chunks[: fit // size]
    if isinstance(method, TwoStageMethod) and each < 1:
        # Its rate depends on how many episodes it solves together.
        some = chunks if each < 0.01 else chunks[: max(1, 48 // size)]
    taken = statistics.mean(taken) if taken else 0
    if FLOORS.get(name) is dirichlet_mixture:
        few = chunks[0][:8]
        taken = m_step_rows(lambda: run([few])) / (len(few) * few.ways)
    return (lambda: run(some), sum(map(len, some))), taken


def m_step_rows(call: Callable[[], object]) -> int:
    """Rows of Dirichlet parameters that the M-steps of a call iterate on, summed over iterations."""
    step, rows = dirichlet._mm_step, []

    def counting(alpha, mean_log):
        rows.append(len(alpha))
        return step(alpha, mean_log)

    dirichlet._mm_step = counting
    try:
        call()
    finally:
        dirichlet._mm_step = step
    return sum(rows)


def backbones(quick: bool) -> dict:
    """{label: {seconds per image, flops per image, seconds of these as a product}}"""
    wide = torch.rand(512, 512)
    product = 2 * 512**3 / seconds_of(lambda: wide @ wide)
    found, cases, sizes = {}, {}, {}
    for name, pixels, batch in (("conv4", 28, 64), ("conv4", 84, 16), ("resnet12", 84, 8), ("efficientnet_lite0", 224, 4)):
        options = {"weights": "random"} if name == "efficientnet_lite0" else {}
        network = create_backbone(name, channels=3, image_size=pixels, **options)
        images = torch.randint(0, 256, (batch, 3, pixels, pixels), dtype=torch.uint8)

        def run(network=network, images=images):
            with torch.inference_mode():
                network(network.transform(images))

        run()
        with FlopCounterMode(display=False) as counter:
            run()
        label = f"{name} {pixels}x{pixels}"
        cases[label], sizes[label] = run, batch
        found[label] = {"flops": counter.get_total_flops() / batch, "product": product}
    for label, values in interleave(cases, 2 if quick else 5).items():
        found[label]["seconds"] = [value / sizes[label] for value in values]
    return found


def training(quick: bool) -> dict:
    """{learner: [seconds of a step on 4 episodes, 5-way 1-shot, 15 queries per class, conv4, 28x28]}"""
    torch.manual_seed(0)
    images = torch.rand(4, 5, 1, 28, 28), torch.rand(4, 75, 1, 28, 28)
    labels = (torch.arange(75) % 5).repeat(4, 1)
    episodes = Episodes(images[0], labels[:, :5], images[1], 5)
    cases = {}
    for label, (parameters, options) in LEARNERS.items():
        backbone = create_backbone("conv4", channels=1, image_size=28, **options)
        config = TrainConfig(method=label.split()[0], parameters=parameters, ways=5, validate_every=0)
        learner = make_learner(config, backbone, None).train()
        optimiser = torch.optim.Adam(learner.parameters(), 1e-3)

        def step(learner=learner, optimiser=optimiser):
            optimiser.zero_grad()
            # Passes of one episode, as on a CPU MAML wants them; the sum of gradients is the same.
            for e in range(4):
                learner.loss(episodes[e], labels[e : e + 1])[0].backward()
            optimiser.step()

        step()
        cases[label] = step
    return interleave(cases, 2 if quick else 5)


def memory(quick: bool) -> dict:
    """{label: [MiB at the peak of a fresh process]}"""
    threads = str(torch.get_num_threads())  # each holds episodes of its own
    cases = {"no episodes": ("protonet", 0)}
    for method, episodes in (("protonet", 1_000), ("protonet", 20_000 if quick else 100_000), ("soft_kmeans", 2_000),
                             ("pt_map", 2_000), ("tim_gd", 32)):
        cases[f"{method}, {episodes:,} episodes"] = method, episodes
    return {label: [peak_memory(*case, OMP_NUM_THREADS=threads) for _ in range(3)] for label, case in cases.items()}


SECTIONS = {"pipeline": pipeline, "pipeline_two": pipeline, "methods": methods, "methods64": partial(methods, dim=64),
            "methods2048": partial(methods, dim=2048), "peers": peers, "peers_two": peers, "backbones": backbones,
            "training": training, "memory": memory}


def main() -> None:
    from suite_page import figure, merged, page

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 640 features only, no memory section")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to measure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="file of measurements, from which other sections are taken")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    parser.add_argument("--figure", type=Path, help="draw measured over floor to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    kept = json.loads(arguments.keep.read_text()) if arguments.keep and arguments.keep.exists() else {}
    chosen = arguments.only or [name for name in SECTIONS if not (arguments.quick and name in LEFT_OUT)]
    for name in chosen:
        load = os.getloadavg()[0]
        torch.set_num_threads(2 if name.endswith("_two") else arguments.threads)
        kept[name] = {"found": SECTIONS[name](arguments.quick),
                      "conditions": f"{conditions('easyfsl', 'scikit-learn', 'POT')}; load average {load:.1f}"}
        if arguments.keep:
            arguments.keep.write_text(json.dumps(kept))
    text = page(kept)
    print(text)
    if arguments.write:
        arguments.write.write_text(merged(arguments.write.read_text() if arguments.write.exists() else "", text))
    if arguments.figure and "methods" in kept:
        figure(kept["methods"]["found"], arguments.figure)


if __name__ == "__main__":
    main()
