"""Does adapting the backbone to each episode pay? Fine-tuning and adapters against classifiers on frozen features.

    python experiments/fine_tuning.py --data-root DATA --tune               # learning rates, on validation classes
    python experiments/fine_tuning.py --data-root DATA --tune pmf           # those of one row
    python experiments/fine_tuning.py --data-root DATA --method film lora   # evaluate some methods (kept in runs/)
    python experiments/fine_tuning.py --data-root DATA                      # all, finished ones are found: writes the tables

Caltech-101 with EfficientNet-Lite0, 24 test classes, 5-way 1-, 5- and 20-shot, 10 queries per class (the smallest class
has 31 images), 200 episodes, the same for all rows. The backbone was trained on ImageNet, which has classes like these:
the numbers compare methods, they are not few-shot accuracy on unseen kinds of objects.

What was made affordable on a CPU: the stored images of 128 pixels are reduced to 64; the last two of seven blocks, with 79 %
of the weights, are adapted (what comes before them runs once an image, in `pmf` once for each augmented image), except by
`url` and `finetune_head`, which leave all frozen; 10 steps on the whole support, where the papers take up to 400 on all
blocks (40 for `url`, which is its paper's number).

Tuning: the learning rate, of a few values and 0 (no adaptation of the backbone), on 60 5-shot episodes of the validation
classes, the same for every candidate; the choice is used for all shots, and is kept with every candidate's accuracy in
experiments/tuned.

Time on one CPU core: about 45 minutes of tuning and 100 minutes of evaluation; the results are in experiments/kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fewshot.core.files import write_atomically
from fewshot.evaluation.result import Result, compare
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.experiments.running import run_experiment, write_table
from fewshot.features.source import FeatureSource
from fewshot.reporting.accuracy_tables import result_notes
from fewshot.reporting.table import TIED, Cell, Table
from fewshot.tuning.search import tune

FROZEN = ("protonet", "simple_shot", "logistic_regression")
# row -> method, what is set, values of the learning rate to try beside the one that is set or the default
LAST = {"blocks": "5,6", "steps": 10}
ADAPTED = {
    "finetune_head": ("finetune", {"layers": "head"}, {"head_lr": [0.0, 0.02, 0.5]}),
    "finetune": ("finetune", {"layers": "5,6"}, {"lr": [0.0, 0.005, 0.1]}),
    "pmf": ("pmf", LAST, {"lr": [0.0, 1e-3, 1e-2]}),
    "film": ("film", LAST, {"lr": [0.0, 0.001, 0.02]}),
    "lora": ("lora", LAST, {"lr": [0.0, 3e-4, 5e-3]}),
    "tsa": ("tsa", LAST, {"lr": [0.0, 0.05], "head_lr": [0.1, 1.0]}),
    "url": ("url", {}, {"lr": [0.0, 0.1]}),
}
SHOTS = (1, 5, 20)
SETTING = {"dataset": "caltech101", "backbone": "efficientnet_lite0", "backbone_options": {"image_size": 64}, "queries": 10,
           "episodes": 200}
TUNED = Path(__file__).parent / "tuned"
TUNED_ON = {"shots": 5, "episodes": 60, "split": "val"}


def chosen(row: str) -> dict:
    """What the search for this row found; nothing before it was made."""
    path = TUNED / f"fine_tuning_{row}.json"
    return json.loads(path.read_text())["chosen"] if path.is_file() else {}


def runs_of(row: str) -> list[Run]:
    method, fixed, _ = ADAPTED.get(row, (row, {}, {}))
    return [Run(method=method, parameters=fixed | chosen(row), shots=shots, **SETTING) for shots in SHOTS]


def search(row: str, source: FeatureSource, store: Store) -> None:
    """Tune the learning rate of one row and keep what was found."""
    method, fixed, grid = ADAPTED[row]
    run = Run(method=method, parameters=fixed, **{**SETTING, **TUNED_ON})
    found = tune(run, grid, source=source, store=store, progress=True)
    record = {"method": method, "set": fixed, "chosen": found.chosen, "reason": found.reason,
              "setting": f"{run.dataset} {run.protocol}, split val", "validation_episodes": run.episodes,
              "candidates": [[{name: r.record.parameters[name] for name in grid}, r.accuracy.percent()]
                             for r in found.candidates]}
    TUNED.mkdir(exist_ok=True)
    write_atomically(TUNED / f"fine_tuning_{row}.json", (json.dumps(record, indent=1) + "\n").encode())
    print(f"{row}: {found.chosen} ({found.reason})", flush=True)


def table(results: list[Result]) -> Table:
    """Accuracy, the paired difference to the best frozen classifier at the same shots, and seconds per episode."""
    of = {(row, shots): results[RUNS.index(run)] for row in ROWS for run, shots in zip(runs_of(row), SHOTS, strict=True)}
    best = {shots: max((of[row, shots] for row in FROZEN), key=lambda r: r.accuracy.mean) for shots in SHOTS}
    labels, cells, records = [], [], []
    for row in ROWS:
        seconds = [of[row, shots].seconds / of[row, shots].accuracy.n for shots in SHOTS]
        labels.append((row, "nothing" if row in FROZEN else "backbone" if "blocks" in of[row, 1].record.parameters
                       or of[row, 1].record.parameters.get("layers", "head") != "head" else "classifier",
                       " / ".join(f"{value:.2g}" for value in seconds)))
        entries = []
        for shots, value in zip(SHOTS, seconds, strict=True):
            result, gap = of[row, shots], None if of[row, shots] is best[shots] else compare(of[row, shots], best[shots])
            entries.append(Cell(result.accuracy.mean, result.accuracy.half_width, "", result.record.key))
            entries.append(gap and Cell(gap.difference.mean, gap.difference.half_width, "" if gap.significant else TIED,
                                        result.record.key, signed=True))
            records.append({"row": row, "shots": shots, "run": result.record.key, "seconds_per_episode": value,
                            "accuracy_percent": 100 * result.accuracy.mean,
                            "half_width_percent": 100 * result.accuracy.half_width})
        cells.append(tuple(entries))
    headings = tuple(name for shots in SHOTS
                     for name in (f"5-way {shots}-shot", f"− best frozen ({best[shots].record.method})"))
    notes = ["Differences are paired, in percentage points ± half width of the 95 % interval.",
             "Seconds of wall time per episode at 1, 5 and 20 shots; those of frozen features are without the backbone, "
             "which ran once an image before.",
             *(f"{row}: {chosen(row) or 'not tuned'}, others {ADAPTED[row][1] or 'as published'}." for row in ADAPTED)]
    legend = {TIED: "the interval of the difference includes zero (no correction for several comparisons)."}
    return Table(("row", "adapts", "seconds"), tuple(labels), headings, tuple(cells), legend,
                 (*notes, *result_notes(list(of.values()))), tuple(records))


ROWS = (*FROZEN, *ADAPTED)
RUNS = [run for row in ROWS for run in runs_of(row)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tune", nargs="*", choices=list(ADAPTED))
    parser.add_argument("--data-root")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options, _ = parser.parse_known_args()
    if options.tune is not None:
        images = FeatureSource(options.data_root, options.runs / "cache", progress=True)
        for each in options.tune or ADAPTED:
            search(each, images, Store(options.runs / "tune"))
        sys.exit()
    measured = run_experiment(__file__, RUNS, rows=("method",))
    if len(measured) == len(RUNS):  # not a trial with some of the methods
        table(measured).print()
        if all(result.accuracy.n == SETTING["episodes"] for result in measured):
            write_table(__file__, "beside_frozen", table(measured))
