"""The page and the figure of benchmarks/suite.py, from its measurements."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from common import markdown, rate, spread

INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/suite.py --write docs/benchmarks.md --figure docs/images/benchmarks.png`. Rates are medians
(and ranges) over interleaved rounds, ratios are within a run; random features with 15 queries per class, float32. More on
single subjects: [methods beside easyfsl and official programs](speed.md), [MAML beside learn2learn](speed_maml.md),
[MAML on two cores](speed_maml_two_cores.md). `benchmarks/progress.py` compares two checkouts, `benchmarks/device.py` an
accelerator with the CPU.
"""
FLOOR = """\
The floor of an episode is the time to gather its features at the bandwidth of a bare `index_select`, plus its matrix
products, each at the measured speed of a batched product of that shape with operands in the cache; for an iterative method,
iterations times the products of one, in the space it works in. The formulas are in `benchmarks/floors.py`. Left out are
normalisation, sums, searches, copies and calls of operators. Exponentials, logarithms and, for Dirichlet mixtures,
lgamma and digamma are counted apart: the last column divides by the floor with them. Gathering is included in all rates.
The floor of a method is measured anew in each round, within the same seconds as the method; ratios are the medians of those
of the rounds."""
BOUNDS = """\
What the profiles of the slower ones show: `simple_shot` passes over the features twice more, to centre and to scale
them. `logistic_regression` projects the queries on all support items where the floor counts the classes, and then makes
short calls in Newton's method, like the bound updates of `slk_means` and `slk_ms`; so do the M-steps of the Dirichlet
mixtures beside lgamma and digamma. `dn4` spends most of its time on the search for the nearest descriptors, which the
floor leaves out. `free_lunch` takes many conjugate-gradient steps where the floor counts one per Newton step, in
products with the few classes last, the slow order. A `protonet` evaluation spends most of its time on gathering and on
thin matrix products; the second thread helps it less than the bare gather beside which it is shown."""
KINDS = ("row numbers", "bare gather", "gather", "evaluation", "easyfsl evaluation")


def median(values: list[float]) -> float:
    return statistics.median(values)


def page(kept: dict) -> str:
    lines = INTRODUCTION.splitlines()
    makers = {"pipeline": _pipeline, "pipeline_two": _pipeline, "methods": _methods, "methods64": _more_methods,
              "methods2048": _more_methods, "peers": _peers, "peers_two": _peers, "backbones": _backbones,
              "training": _training, "memory": _memory}
    for name, made in makers.items():
        if name in kept:
            lines += ["", *made(kept[name]["found"], f"{kept[name]['conditions']}.", name)]
    return "\n".join([*lines, ""])


def merged(old: str, new: str) -> str:
    """The page `old` with the sections of `new` in place of its own, further ones at the end."""
    sections = _sections(old) | _sections(new)
    return "\n\n".join(sections.values()) + "\n"


def _sections(page: str) -> dict[str, str]:
    """{first line: text} of every part of a page that begins with a heading."""
    return {part.partition("\n")[0]: part.strip() for part in re.split(r"(?m)^(?=#+ )", page) if part}


def _threads(name: str) -> str:
    return ", two threads" if name.endswith("_two") else ""


def _pipeline(found: dict, conditions: str, name: str) -> list[str]:
    lines = [f"## From row numbers to results{_threads(name)}", "", conditions, "",
             "640 features, 12,000 rows. The bare gather copies the rows of each episode into one array that is used again; "
             "an evaluation draws, gathers, classifies (`protonet`), measures and fingerprints; each of its threads does so "
             "for other episodes, while the other rows use threads inside their operators. easyfsl's path is its "
             "`FeaturesDataset`, `TaskSampler`, a `DataLoader` and `PrototypicalNetworks`.", ""]
    rows = []
    for protocol, seconds in found.items():
        gather = median(seconds["bare gather"])
        theirs = seconds.get("easyfsl evaluation")
        for kind in (kind for kind in KINDS if kind in seconds):
            cells = [spread([1 / value for value in seconds[kind]]), f"{median(seconds[kind]) / gather:.2f}"]
            rows.append([protocol, kind, *cells, rate(median(theirs) / median(seconds[kind])) if theirs else ""])
    return lines + markdown(["protocol", "", "episodes/s", "time / bare gather", "times easyfsl"], rows, 2)


def _methods(found: dict, conditions: str, _) -> list[str]:
    return ["## Every method on cached features, over its floor", "", *FLOOR.splitlines(), "",
            "![measured time over floor](images/benchmarks.png)", "", *_more_methods(found, conditions, "methods640"), "",
            *BOUNDS.splitlines()]


def _more_methods(found: dict, conditions: str, name: str) -> list[str]:
    rows = []
    for method in _order(found):
        cells = []
        for here in found.values():
            one = here.get(method)
            shown = ["", ""] if one is None or not any(one["floors"]) else [f"{ratio:.1f}" for ratio in ratios(one)]
            cells += ["-" if one is None else spread(one["rates"]), *shown]
        rows.append([method, *cells])
    header = ["method", *(part for p in found for part in (f"{p}: episodes/s", "/ floor", "with exp"))]
    return [f"### {name.removeprefix('methods')} features", "", conditions, "", *markdown(header, rows), "",
            "A dash: not run, because an episode takes longer than this benchmark waits, or because the features do not fit "
            "(DN4 needs maps, COSOC several crops)."]


def ratios(one: dict) -> tuple[float, float]:
    """Measured time over the floor of the same round, without and with exponentials; the median round."""
    rounds = list(zip(one["rates"], one["floors"], one["elementwise"], strict=True))
    return (median(1 / (rate * floor) for rate, floor, _ in rounds),
            median(1 / (rate * (floor + more)) for rate, floor, more in rounds))


def _order(protocols: dict) -> list[str]:
    names = {name for here in protocols.values() for name in here}
    first = next(iter(protocols.values()))
    return sorted(names, key=lambda name: -median(first[name]["rates"]) if name in first else 0)


def _peers(found: list[dict], conditions: str, name: str) -> list[str]:
    rows = [[one["theirs"], one["ours"], one["protocol"], spread(one["their rates"]), spread(one["our rates"]),
             f"{median(one['our rates']) / median(one['their rates']):.1f}", one["agreement"]] for one in found]
    return [f"## Other libraries at equal settings{_threads(name)}", "", conditions, "",
            "640 features, gathered beforehand; episodes/s. The others take one episode at a time. easyfsl: iterations set "
            "equal, features scaled to unit length where both can; formulas differ in details. scikit-learn: fit and "
            "decision values, with a tolerance at which its objective agrees (its default's is up to 1e-4 above).", "",
            *markdown(["theirs", "ours", "protocol", "theirs", "ours", "ratio", "agreement"], rows, 3)]


def _backbones(found: dict, conditions: str, _) -> list[str]:
    rows = []
    for label, one in found.items():
        seconds = median(one["seconds"])
        rows.append([label, spread([1 / value for value in one["seconds"]]), f"{one['flops'] / 1e6:,.0f}",
                     f"{one['flops'] / seconds / 1e9:.0f}", f"{seconds * one['product'] / one['flops']:.1f}"])
    return ["## Feature extraction", "", conditions, "",
            "Random weights, evaluation mode, transform included. The floor is the operations of the convolutions at the "
            "speed of a 512x512 matrix product; oneDNN's convolutions are faster than MKL's products here.", "",
            *markdown(["backbone", "images/s", "Mflop per image", "Gflop/s", "time / floor"], rows)]


def _training(found: dict, conditions: str, _) -> list[str]:
    first = median(found["protonet"])
    rows = [[label, f"{1000 * median(values):,.0f} ({1000 * min(values):,.0f} to {1000 * max(values):,.0f})",
             f"{median(values) / first:.1f}"] for label, values in found.items()]
    return ["## One training step", "", conditions, "",
            "Four episodes of images, 5-way 1-shot, 15 queries per class, conv4 at 28x28, Adam; gradient-based learners "
            "take 5 inner steps (meta_sgd its default).", "", *markdown(["learner", "ms", "time / protonet"], rows)]


def _memory(found: dict, conditions: str, _) -> list[str]:
    return ["## Peak memory", "", conditions, "",
            "What a fresh process has resident at most (`VmHWM`): Python, torch, a bank of 12,000 x 640 features and the "
            "evaluation, 5-way 1-shot; median (and range) of three. The first row is all but the evaluation.", "",
            *markdown(["", "MiB"], [[label, spread(values)] for label, values in found.items()])]


def figure(found: dict, path: Path) -> None:
    """Measured time over floor of every method at 640 features: one row per method, one mark per protocol."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {protocol: {name: one for name, one in here.items() if any(one["floors"])} for protocol, here in found.items()}
    names = sorted(_order(found), key=lambda name: -max(ratios(here[name])[1] for here in found.values() if name in here))
    drawing, axes = plt.subplots(figsize=(7.5, 0.27 * len(names) + 1.4), layout="constrained")
    for (protocol, here), mark in zip(found.items(), "os^", strict=True):
        known = [name for name in names if name in here]
        axes.plot([ratios(here[name])[1] for name in known], [names.index(name) for name in known], mark, label=protocol,
                  markersize=5, alpha=0.85)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.axvline(3, color="0.7", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20) if tick <= 1.2 * axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("measured time / floor (gather, matrix products, exponentials), 640 features")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)
