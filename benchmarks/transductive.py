"""Episodes per second of every method on cached features, beside easyfsl's methods and the official programs.

    python benchmarks/transductive.py [--rounds 5] [--seconds 0.5] [--write docs/speed.md]

All methods see the same episodes: 640-dimensional non-negative features in clusters, 5-way 1-shot and 5-shot, 75 queries,
in chunks as `fewshot.evaluate` makes them, gathered beforehand. In every round each method runs once, so that a noisy
machine disturbs all alike; medians and ranges are over rounds. With the defaults it takes about five minutes.

easyfsl is not a dependency. To have its methods timed too, run this in an environment that is thrown away:

    python -m venv /tmp/speed && /tmp/speed/bin/pip install -e . easyfsl && /tmp/speed/bin/python benchmarks/transductive.py
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import torch
from common import Contender, call_text, easyfsl_method, feature_methods, index_chunks, machine
from common import clusters as bank
from common import rate as _rate

from fewshot.core import provenance
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.methods import METHODS, create_method

SETTINGS = (1, 5)  # shots
EPISODES = 512  # at most; slow methods run on the first few
# Official programs, episodes/s at 5w1s and 5w5s: measured once in another run, on an idle machine of this kind, with two
# threads, 640-d, 75 queries, batched as they allow.
OFFICIAL = {"pt_map": ("81", "79"), "tim_gd": ("10", "8"), "tim_adm": ("86", "80"), "alpha_tim": ("11", "9"),
            "laplacian_shot": ("500-720", "470-520"), "paddle": ("223", "207"), "unem_gaussian": ("1,720", "1,540"),
            "opta": ("11", "30"), "easy_transductive": ("359", "353")}
# (easyfsl class, its settings, our method, our settings): the same number of iterations, neighbours and normalisation.
# Dividing by the sum before the square root gives PT-MAP's unit length; without, its plan underflows to NaN (first row).
PAIRS = (("PrototypicalNetworks", {}, "protonet", {}),
         ("PTMAP", {"fine_tuning_steps": 10}, "pt_map", {"iterations": 10}),
         ("PTMAP", {"fine_tuning_steps": 20, "feature_normalization": 1}, "pt_map", {"iterations": 20}),
         ("TIM", {"fine_tuning_steps": 50}, "tim_gd", {"iterations": 50}),
         ("LaplacianShot", {"inference_steps": 20, "knn": 3, "feature_normalization": 2}, "laplacian_shot",
          {"norm": "l2n", "max_iterations": 20, "neighbours": 2, "laplacian_weight": 0.7}),
         ("BDCSPN", {"feature_normalization": 2}, "bd_cspn", {"norm": "l2n"}))


def chunks_of(features: FeatureBank, shots: int) -> list:
    return [chunk.gather(features) for chunk in index_chunks(features, 5, shots, EPISODES)]


def measure(shots: int, names: list[str], rounds: int, seconds: float, with_easyfsl: bool) -> tuple[dict, list]:
    """{name: contender} of every method with its defaults, and [(theirs, ours, same labels)] at equal settings."""
    chunks, base = chunks_of(bank(0), shots), bank(1)
    methods, pairs = {}, []
    for name in names:
        with contextlib.suppress(FewshotError):  # COSOC, where features are not those of its number of crops
            methods[name] = Contender(name, create_method(name).fit(base), chunks, seconds)
    for official, their_settings, name, settings in PAIRS if with_easyfsl else ():
        if name in names:
            left = Contender(call_text(official, their_settings), easyfsl_method(official, their_settings), chunks, seconds)
            right = Contender(call_text(name, settings), create_method(name, **settings).fit(base), chunks, seconds)
            with torch.no_grad():
                same = (left.answer(chunks[0]).argmax(-1) == right.answer(chunks[0]).argmax(-1)).double().mean()
            pairs.append((left, right, float(same)))
    for _ in range(rounds):
        for contender in [*methods.values(), *(contender for pair in pairs for contender in pair[:2])]:
            contender.run()
    return methods, pairs


def page(found: dict[int, tuple[dict, list]], rounds: int, loads: tuple[float, float]) -> str:
    versions = provenance.versions()
    easyfsl = importlib.metadata.version("easyfsl") if any(pairs for _, pairs in found.values()) else "absent"
    lines = ["# Speed", "",
             "Episodes per second on cached features: 640-d, 5 ways, 75 queries, float32, gathering not included; median "
             f"(and range) of {rounds} interleaved rounds. Written by `python benchmarks/transductive.py --write "
             "docs/speed.md`.", "",
             f"{machine()}; {torch.get_num_threads()} threads; Python {versions['python']}, torch {versions['torch']}, "
             f"easyfsl {easyfsl}; load average {loads[0]:.1f} at the start, {loads[1]:.1f} at the end.", "",
             "## Every method with its defaults", "",
             "The official programs were measured once in **another run**, on an idle machine of this kind with two "
             "threads: compare orders of magnitude only. They take the same number of iterations as the defaults here, but "
             "use their own stopping rules.", "",
             "| method | setting | 5w1s | 5w5s | time / protonet 5w1s | 5w5s | official program, another run 5w1s | 5w5s |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]
    by_shots = [methods for methods, _ in found.values()]
    for name in sorted(by_shots[0], key=lambda name: -by_shots[0][name].rate):
        cells = [methods[name].cell() for methods in by_shots]
        ratios = [_rate(methods["protonet"].rate / methods[name].rate) for methods in by_shots]
        official = OFFICIAL.get(name, ("", ""))
        lines.append(f"| {' | '.join([name, METHODS[name].setting, *cells, *ratios, *official])} |")
    if left_out := sorted(set(feature_methods()) - set(by_shots[0])):
        lines += ["", f"Not in this run: {', '.join(left_out)} (COSOC needs the features of several crops)."]
    lines += ["", "## easyfsl at equal iterations", ""]
    if easyfsl == "absent":
        return "\n".join([*lines, "easyfsl was not installed in this run; the docstring of the benchmark says how.", ""])
    lines += ["Its methods take one episode at a time. Iterations are set equal (by default PT-MAP takes 10 steps there and "
              "20 here, TIM 50 and 1000), features are scaled to unit length where both can; the formulas differ in "
              "details, so the share of equal predictions is given. On features that are not scaled, easyfsl's PT-MAP "
              "underflows: it returns NaN, predicts class 0 and runs all 1000 Sinkhorn iterations.", "",
              "| easyfsl | this project | shots | easyfsl | this project | ratio | same labels |",
              "|---|---|--:|--:|--:|--:|--:|"]
    for shots, (_, pairs) in found.items():
        lines += [f"| {left.label} | {right.label} | {shots} | {left.cell()} | {right.cell()} | "
                  f"{_rate(right.rate / left.rate)} | {100 * same:.0f} % |" for left, right, same in pairs]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="only these (protonet is always among them)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="aimed at per method and round")
    parser.add_argument("--write", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    names = feature_methods()
    if arguments.methods:
        names = ["protonet", *(name for name in names if name in arguments.methods and name != "protonet")]
    with_easyfsl = importlib.util.find_spec("easyfsl") is not None
    before = os.getloadavg()[0]
    found = {shots: measure(shots, names, arguments.rounds, arguments.seconds, with_easyfsl) for shots in SETTINGS}
    text = page(found, arguments.rounds, (before, os.getloadavg()[0]))
    print(text)
    if not with_easyfsl:
        print(__doc__.split("\n\n", 2)[2])
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
