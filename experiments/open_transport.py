"""Queries of no class of the episode: does a transport plan that may leave them out help PT-MAP?

    python experiments/open_transport.py --data-root DATA        # ten minutes on one idle core; needs POT

A balanced plan hands all queries to the classes, those of other classes ("open" ones), too. Plans that need not, in PT-MAP's
loop in its place, with cost |z - w|^2 and regularisation 1 / scale:

    balanced     what `pt_map` does: a query's mass is 1, a class gets Q/N
    unknown      a query's mass is 1, a class gets what comes (`query_prior="unknown"`)
    semi         a query's mass is 1, a class pays class_weight KL(mass | Q/N)
    free         a query pays query_weight KL(mass | 1), a class gets what comes
    unbalanced   both pay  (Chizat et al. 2018, arXiv:1607.05816)
    partial      a query's mass is at most 1, a class gets share Q/N  (Benamou et al. 2015, arXiv:1412.5154)
    reservoir    balanced with one more class at no cost that takes the mass (1 - share) Q

POT has `partial` one problem at a time; it is computed here for many episodes at once, and the program stops where it
differs from POT's by more than 1e-6. All but the last two are settings of `pt_map`, which the tests compare with POT.

Conv-4, trained on the base classes; 5-way, 7 queries a class and 15 of three further classes, 30 % of all. Scale, weights
or share, and what is the score of being known (the largest entry of a query's row of the plan, or minus its distance to the
nearest prototype), are chosen together on 150 episodes of the validation classes by the share of right answers among the
queries kept when as many are rejected as are open (`accepted`); 1,500 episodes of the test classes. What was chosen is also
asked without open queries, and with twice as many. Intervals of 95 % over classes and episodes, differences paired.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import ot
import pandas as pd
import torch
from torch import Tensor

from fewshot.core.files import write_atomically
from fewshot.core.provenance import commit
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.measures import open_set_measures
from fewshot.evaluation.run import Run
from fewshot.experiments.running import weights_file
from fewshot.features.source import FeatureSource
from fewshot.methods.pt_map import PTMAP
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.transport import Transport, entropic_plan
from fewshot.reporting.naming import parameter_text
from fewshot.reporting.table import Cell, Table
from fewshot.statistics import class_interval

VALIDATION_EPISODES, TEST_EPISODES, CHUNK = 150, 1500, 250
RUNS = [Run(dataset=dataset, weights=weights_file(__file__, weights), method="pt_map", shots=shots, queries=7,
            open_classes=3, open_queries=5)
        for dataset, weights in (("glyphs", "conv4_glyphs_protonet"), ("omniglot", "conv4_omniglot_background"))
        for shots in (1, 5)]
OTHER = {"": {}, "no open": {"open_classes": 0, "open_queries": 0}, "twice": {"open_classes": 6}}
SCALES, SHARES = (5.0, 10.0, 20.0), (0.6, 0.7, 0.8)
OF_QUERY, OF_CLASS = (0.03, 0.1, 0.3), (0.3, 1.0, 3.0)  # weights
SCORES = ("plan", "distance")


OPTIONS = {"balanced": [{}], "unknown": [{"query_prior": "unknown"}], "semi": [{"class_weight": each} for each in OF_CLASS],
           "free": [{"query_prior": "unknown", "query_weight": each} for each in OF_QUERY],
           "unbalanced": [{"query_weight": one, "class_weight": two} for one, two in itertools.product(OF_QUERY, OF_CLASS)],
           "partial": [{"share": share} for share in SHARES], "reservoir": [{"share": share} for share in SHARES]}


def partial_plan(cost: Tensor, share: float, reg: float, start: Tensor | None = None, tolerance: float = 1e-4,
                 most: int = 60) -> tuple[Tensor, Tensor]:
    """(masses [E, Q, N], log scalings of the classes [E, N]) of costs [E, Q, N]: the scaling algorithm of Chizat et al.
    2018, algorithm 1, in logarithms, until no scaling of any episode changes by more than `tolerance`."""
    episodes, queries, ways = cost.shape
    kernel, log_demand = -cost.double() / reg, math.log(share * queries / ways)
    g = kernel.new_zeros(episodes, ways) if start is None else start
    for _ in range(most):
        f = (kernel + g[:, None]).logsumexp(2).neg().clamp(max=0)
        before, g = g, log_demand - (kernel + f[..., None]).logsumexp(1)
        if float((g - before).abs().amax()) <= tolerance:
            break
    return (kernel + f[..., None] + g[:, None]).exp(), g


class WithShare(PTMAP):
    """PT-MAP whose classes get a share of the queries' mass."""

    def __init__(self, share: float, **settings: float):
        super().__init__(**settings)
        object.__setattr__(self, "share", share)  # the class is frozen


class Partial(WithShare):
    """A query gives at most 1."""

    def _assign(self, query: Tensor, means: Tensor, start: Transport | None = None) -> Transport:
        masses, potentials = partial_plan(squared_euclidean(query, means), self.share, 1 / self.scale,
                                          None if start is None else start.potentials)
        steps = torch.zeros(len(query), dtype=torch.int64)
        return Transport(masses.to(query.dtype), steps, steps == 0, potentials)


class Reservoir(WithShare):
    """One more class at no cost takes what the others leave."""

    def _assign(self, query: Tensor, means: Tensor, start: Transport | None = None) -> Transport:
        cost = torch.nn.functional.pad(squared_euclidean(query, means), (0, 1))
        episodes, queries, columns = cost.shape
        shares = torch.tensor([self.share / (columns - 1)] * (columns - 1) + [1 - self.share], dtype=torch.float64)
        found = entropic_plan(cost, cost.new_ones(episodes, queries), (shares * queries).expand(episodes, -1),
                              1 / self.scale, start=start)
        return found._replace(plan=found.plan[:, :, :-1])


SHOWN = {"query_weight": 0.3, "class_weight": 1.0}  # in the picture
METHODS = {"partial": Partial, "reservoir": Reservoir}  # the others are pt_map's


def compare_with_pot(cost: Tensor, reg: float) -> None:
    """Stop unless POT finds the same partial plan for an episode's costs [1, Q, N]; tests compare the unbalanced one."""
    queries, ways = cost.shape[1:]
    share, ones, matrix = 0.7, np.ones(queries), cost[0].double().numpy()
    theirs = ot.partial.entropic_partial_wasserstein(ones, np.full(ways, share * queries / ways), matrix, reg,
                                                     share * queries, numItermax=100_000, stopThr=1e-13)
    away = float(np.abs(partial_plan(cost, share, reg, tolerance=1e-10, most=100_000)[0][0].numpy() - theirs).max())
    print(f"the partial plan differs from POT's by {away:.1e}")
    if not away < 1e-6:
        raise SystemExit("the partial plan is not POT's")


def measured(method: PTMAP, run: Run, bank: FeatureBank) -> tuple[dict[str, Tensor], Tensor]:
    """({"accuracy": [E], "plan auroc": [E], ...}, classes [E, N]) on the episodes of `run`."""
    indices = run.sampler(bank).indices(0, run.episodes)
    rows: list[dict[str, Tensor]] = []
    for chunk in indices.split(CHUNK):
        reduced, labels = method.reduce(chunk.gather(bank)), chunk.query_labels
        found = method.solve(reduced)
        known, logits = labels >= 0, found.logits.double()
        row = {"accuracy": ((logits.argmax(-1) == labels) & known).sum(1).double() / known.sum(1)}
        if run.open_classes:
            # The class is that of the plan for either score: with one number added to a row, its largest entry is the score.
            nearest = -squared_euclidean(reduced.query, found.prototypes).amin(-1).double()
            for name, score in (("plan", logits.amax(-1)), ("distance", nearest)):
                scored = open_set_measures(logits - logits.amax(-1, keepdim=True) + score[..., None], labels)
                row |= {f"{name} {key}": scored[f"{key}_logit"] for key in ("auroc", "accepted")}
        rows.append(row)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}, indices.classes


def chosen(run: Run, bank: FeatureBank) -> dict[str, tuple[dict, PTMAP, str]]:
    """Kind of plan -> (settings, method, score), best on validation classes."""
    found = {}
    for kind, options in OPTIONS.items():
        tried = []
        for option, scale in itertools.product(options, SCALES):
            settings = {"scale": scale, **option}
            method = METHODS.get(kind, PTMAP)(**settings)
            values, _ = measured(method, run.changed(episodes=VALIDATION_EPISODES), bank)
            tried += [(float(values[f"{score} accepted"].mean()), settings, method, score) for score in SCORES]
        found[kind] = max(tried, key=lambda one: one[0])[1:]
    return found


def rows_of(run: Run, validation: FeatureBank, test: FeatureBank) -> Iterator[tuple[tuple[str, ...], dict]]:
    """(labels, intervals) of the rows of the table."""
    best, base = chosen(run, validation), {}
    for kind, (settings, method, score) in best.items():
        row = {}
        for where, other in OTHER.items():
            values, classes = measured(method, run.changed(episodes=TEST_EPISODES, seed=1, **other), test)
            own = {"accuracy": values["accuracy"],
                   **{key: values[f"{score} {key}"] for key in ("auroc", "accepted") if other.get("open_classes", 3)}}
            if kind == "balanced":
                base[where] = own
            for name, value in own.items():
                key = f"{name} {where}".strip()
                row[key] = class_interval(value if kind == "balanced" else value - base[where][name], classes)
        labels = (run.dataset, f"{run.shots}-shot", kind, f"{parameter_text(settings)}, by {score}")
        print(*labels, {name: f"{100 * each.mean:.2f} +- {100 * each.half_width:.2f}" for name, each in row.items()},
              flush=True)
        yield labels, row


def picture(run: Run, test: FeatureBank) -> bytes:
    """How much mass the classes take of known and of open queries, with a balanced and an unbalanced plan."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    chunk = run.sampler(test).indices(0, CHUNK)
    episodes, known = chunk.gather(test), chunk.query_labels >= 0
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    for axis, settings in zip(axes, ({}, SHOWN), strict=True):
        largest = PTMAP(**settings)(episodes).exp().amax(-1)
        for name, which, colour in (("of the classes", known, "tab:blue"), ("of none", ~known, "tab:orange")):
            axis.hist(largest[which].clamp(max=2).numpy(), bins=40, range=(0, 2), density=True, alpha=0.6, label=name,
                      color=colour)
        axis.set(title=f"pt_map ({parameter_text(settings) or 'balanced'})", xlabel="largest mass of a query")
    axes[0].set_ylabel("density")
    axes[0].legend(title="queries")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    plt.close(figure)
    return buffer.getvalue()


HEADINGS = ("data", "shots", "plan", "chosen")
COLUMNS = {"accuracy": "accuracy", "auroc": "AUROC", "accepted": "kept right", "accuracy no open": "accuracy without open",
           "accuracy twice": "accuracy, twice", "auroc twice": "AUROC, twice", "accepted twice": "kept right, twice"}


def table_of(records: list[dict]) -> Table:
    """The records as a table: a row for each plan, a column for each measure."""
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    for one in records:
        cells = rows.setdefault(tuple(one[name] for name in HEADINGS), {})
        cells[one["measure"]] = Cell(one["mean"], one["half_width"], factor=100)
    note = (f"In percent, n = {TEST_EPISODES} episodes of the test classes, 95 % interval over classes and episodes. Of the "
            "balanced plan the values, of the others their paired differences to it. 15 open queries beside 35 known ones, "
            "none, and 30; kept right: share of right answers among the queries kept when as many are rejected as are open. "
            f"Chosen on {VALIDATION_EPISODES} validation episodes.")
    return Table(HEADINGS, tuple(rows), tuple(COLUMNS.values()),
                 tuple(tuple(cells[name] for name in COLUMNS) for cells in rows.values()), {}, (note,), tuple(records))


def main() -> None:
    parser = argparse.ArgumentParser(description="transport plans that may leave queries out")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--dataset", help="compute this one anew; the rows of the other stay as they are")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder whose cache holds the features")
    arguments = parser.parse_args()
    source = FeatureSource(arguments.data_root, arguments.runs / "cache", progress=True)
    made: list[dict] = []
    for run in RUNS:
        if arguments.dataset not in (None, run.dataset):
            continue
        validation, test = (source.features(run.changed(split=split).subject) for split in ("val", "test"))
        method = PTMAP()
        reduced = method.reduce(run.sampler(validation).indices(0, 1).gather(validation))
        compare_with_pot(squared_euclidean(reduced.query, method.solve(reduced).prototypes), 1 / method.scale)
        made += [{**dict(zip(HEADINGS, labels, strict=True)), "measure": name, "mean": interval.mean,
                  "half_width": interval.half_width, "n": interval.n, "commit": commit()}
                 for labels, row in rows_of(run, validation, test) for name, interval in row.items()]
        if run == RUNS[0]:
            write_atomically(Path(__file__).parent.parent / "docs" / "images" / "open_queries.png", picture(run, test))
    results = Path(__file__).parent / "results"
    if arguments.dataset:
        before = pd.read_csv(results / "open_transport.csv").to_dict("records")
        made = sorted([one for one in before if one["data"] != arguments.dataset] + made, key=lambda one: one["data"])
    table = table_of(made)
    table.print()
    write_atomically(results / "open_transport.md", table.to_markdown().encode())
    write_atomically(results / "open_transport.csv", table.to_csv().encode())


if __name__ == "__main__":
    main()
