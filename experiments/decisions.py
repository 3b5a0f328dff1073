"""Do sets hold the true class at the rate that was asked for? Coverage on classes that chose no threshold.

    python experiments/decisions.py --data-root DATA

ProtoNet (temperature 0.1) on L2-normalised features, 5-way 1- and 5-shot: Omniglot with the Conv-4 of
experiments/omniglot_background.py (172 validation and 659 test classes), Caltech-101 with EfficientNet-Lite0 (16 and 24).

`halves`: the validation classes are split into two random halves, 100 times; thresholds are chosen on 500 episodes of one
half and measured on 500 of the other. The interval is over the splits, and says nothing of other data. `test`: chosen on
all validation classes, measured on 2,000 episodes of the test classes; the interval covers the choice of the test classes.

`following`: the threshold follows the difficulty of the support (`decisions_from`), `fixed`: it does not, which is all that
is possible with 1 shot. `support`: from the support alone (`support_sets`), no validation classes; impossible with 1 shot.
About three minutes on one CPU core, without the extraction.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewshot.core.files import write_atomically
from fewshot.core.provenance import commit
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.calibration import Answered, answered, decisions_from
from fewshot.evaluation.decisions import score_of, support_sets
from fewshot.evaluation.measures import decision_measures
from fewshot.evaluation.resolve import CPU, ready, resolve
from fewshot.evaluation.run import Run
from fewshot.experiments.running import small_data_runs
from fewshot.features.source import FeatureSource
from fewshot.reporting.table import Cell, Table
from fewshot.statistics import Interval, class_interval, mean_interval

TARGETS, SPLITS, EPISODES, TEST_EPISODES = (0.9, 0.95), 100, 500, 2000
RUNS = small_data_runs(__file__, "protonet", parameters={"temperature": 0.1}, transforms="l2", distributions=("balanced",))
OVER_SPLITS = "the split of the validation classes and the episodes"
Measured = dict[str, Tensor]  # name -> [E], of `decision_measures`


def on(run: Run, bank: FeatureBank) -> Answered:
    """Answers to the episodes of `run` from `bank` and, with several shots, to their supports."""
    method, prepare, _ = ready(resolve(run, bank))
    return answered(run, bank, method, prepare, CPU, of_support=True)


def from_validation(chosen: Answered, asked: Answered, target: float) -> Iterator[tuple[str, Measured]]:
    """(how, what was measured) on the episodes `asked` with thresholds from the episodes `chosen`."""
    fixed = decisions_from(dataclasses.replace(chosen, left_out=None), target)
    yield "fixed", decision_measures(fixed, asked.logits, asked.labels)
    if asked.left_out is not None:
        following = decisions_from(chosen, target)
        hard = score_of(*asked.left_out, following.temperature).mean(1)
        yield "following", decision_measures(following, asked.logits, asked.labels, hard)


def from_support(run: Run, bank: FeatureBank, target: float) -> Measured:
    method, prepare, _ = ready(resolve(run, bank))
    indices = run.sampler(bank).indices(0, run.episodes)
    with torch.inference_mode():
        found = [support_sets(method, prepare(chunk.gather(bank)), target) for chunk in indices.split(50)]
    sets = torch.cat([each for each in found if each is not None])
    holds = sets.gather(-1, indices.query_labels[..., None])[..., 0]
    return {"coverage": holds.double().mean(1), "set_size": sets.sum(-1).double().mean(1)}


def part_of(bank: FeatureBank, classes: Tensor) -> FeatureBank:
    rows = torch.isin(bank.labels, classes).nonzero()[:, 0]
    return FeatureBank(bank.features[rows], bank.labels[rows], name=bank.name, split=bank.split)


def halves(run: Run, bank: FeatureBank) -> dict[tuple[float, str], dict[str, list[float]]]:
    """(target, how) -> name -> mean of each split."""
    found: dict[tuple[float, str], dict[str, list[float]]] = {}
    for split in range(SPLITS):
        order = bank.classes[torch.randperm(len(bank.classes), generator=torch.Generator().manual_seed(split))]
        first, second = (part_of(bank, part) for part in order.chunk(2))
        chosen = on(run.changed(seed=2 * split, episodes=EPISODES), first)
        asked = on(run.changed(seed=2 * split + 1, episodes=EPISODES), second)
        for target in TARGETS:
            for how, measured in from_validation(chosen, asked, target):
                place = found.setdefault((target, how), {name: [] for name in measured})
                for name, values in measured.items():
                    place[name].append(float(values.mean()))
    return found


def rows_of(run: Run, validation: FeatureBank, test: FeatureBank) -> Iterator[tuple[tuple[str, ...], dict[str, Interval]]]:
    """(labels, intervals of what was measured) of the rows of the table."""
    place = (run.dataset, f"{run.shots}-shot")
    for (target, how), means in halves(run, validation).items():
        found = {name: mean_interval(values, covers=OVER_SPLITS) for name, values in means.items()}
        spread = float(np.std(means["coverage"], ddof=1))
        yield (*place, "halves", f"{target:g}", how), {**found, "spread": Interval(spread, float("nan"), SPLITS)}
    chosen = on(run.changed(episodes=EPISODES), validation)
    whole = run.changed(episodes=TEST_EPISODES, seed=1)
    asked, classes = on(whole, test), whole.sampler(test).indices(0, TEST_EPISODES).classes
    for target in TARGETS:
        ways = list(from_validation(chosen, asked, target))
        ways += [("support", from_support(whole, test, target))] if run.shots > 1 else []
        for how, measured in ways:
            yield (*place, "test", f"{target:g}", how), {name: class_interval(x, classes) for name, x in measured.items()}


COLUMNS = {"coverage": ("coverage", 100), "spread": ("sd of splits", 100), "set_size": ("set size", 1),
           "known_kept": ("not unknown", 100)}
HEADINGS = ("data", "shots", "classes", "target", "threshold")


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of sets on classes that chose no threshold")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder whose cache holds the features")
    arguments = parser.parse_args()
    source = FeatureSource(arguments.data_root, arguments.runs / "cache", progress=True)
    found = [row for run in RUNS for row in rows_of(run, *(source.features(run.changed(split=split).subject)
                                                          for split in ("val", "test")))]
    cells = [tuple(Cell(row[name].mean, row[name].half_width, factor=factor) if name in row else None
                   for name, (_, factor) in COLUMNS.items()) for _, row in found]
    records = [{**dict(zip(HEADINGS, labels, strict=True)), "measure": name, "mean": interval.mean,
                "half_width": interval.half_width, "n": interval.n, "commit": commit()}
               for labels, row in found for name, interval in row.items()]
    table = Table(HEADINGS, tuple(labels for labels, _ in found), tuple(heading for heading, _ in COLUMNS.values()),
                  tuple(cells), {},
                  (f"halves: {SPLITS} random halves of the validation classes, one chooses and the other is measured, "
                   f"{EPISODES} episodes each; 95 % interval over the splits. test: {TEST_EPISODES} episodes, 95 % interval "
                   "over classes and episodes. In percent but the set size. Not unknown: share of the queries that are not "
                   "called unknown, to be 95 % or more.",), tuple(records))
    table.print()
    results = Path(__file__).parent / "results"
    write_atomically(results / "decisions.md", table.to_markdown().encode())
    write_atomically(results / "decisions.csv", table.to_csv().encode())


if __name__ == "__main__":
    main()
