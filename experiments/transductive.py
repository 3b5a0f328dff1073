"""Every method on features that need no registration: defaults as published, and tuned on validation classes.

    python experiments/transductive.py --data-root DATA                  # evaluate, or find what is in runs/
    python experiments/transductive.py --data-root DATA --dataset omniglot --shots 1 --distribution balanced  # one setting
    python experiments/transductive.py --data-root DATA --tune           # choose hyper-parameters first (all methods)
    python experiments/transductive.py --data-root DATA --tune paddle    # those of one method

Omniglot with the Conv-4 of experiments/omniglot_background.py, Caltech-101 with EfficientNet-Lite0; 5-way 1- and 5-shot,
balanced and Dirichlet(2) queries, 10,000 episodes (1,000 for PUTM, in tables of its own). Writes one table for each of these
eight settings, when all its methods were evaluated: accuracy with the published defaults and with tuned values, and paired
differences to soft k-means and to the best inductive method.

Tuning: a grid of a few values (below) on 500 episodes of the validation classes, the same for every candidate; the choice
and every candidate's accuracy are kept in experiments/tuned. EfficientNet-Lite0 was trained on ImageNet, which has classes
like those of Caltech-101: the numbers compare methods. A quarter of an hour on one CPU core for each setting of Omniglot,
about an hour for each of Caltech-101.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections import Counter
from pathlib import Path

from fewshot.core.files import write_atomically
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.experiments.running import of_setting, run_experiment, small_data_runs, write_table
from fewshot.features.source import FeatureSource
from fewshot.reporting.reference_table import reference_table
from fewshot.tuning.search import tune

PRIORS = ["balanced", "unknown"]
GRIDS = {
    "protonet": None,
    "nearest_neighbour": None,
    "simple_shot": {"norm": ["un", "l2n", "cl2n"]},
    "logistic_regression": {"C": [0.1, 1.0, 10.0]},
    "ridge": {"regularisation": [0.1, 1.0, 10.0]},
    "soft_kmeans": {"scale": [2.5, 5.0, 10.0, 20.0]},
    "easy_transductive": {"scale": [2.5, 5.0, 10.0, 20.0]},
    "kmeans": {"norm": ["l2n", "cl2n"], "clamp_support": [True, False]},
    "slk_means": {"laplacian_weight": [0.1, 0.3, 0.7], "neighbours": [2, 5]},
    "slk_ms": {"laplacian_weight": [0.1, 0.3, 0.7], "neighbours": [2, 5]},
    "bd_cspn": {"temperature": [0.05, 0.1, 0.2], "queries": ["shifted", "unshifted"]},
    "laplacian_shot": {"laplacian_weight": [0.1, 0.3, 0.7, 1.0], "rectify": [True, False]},
    "hct_adapt": {"scale": [5.0, 10.0, 20.0], "step_size": [0.1, 0.2, 0.4]},
    "paddle": {"prior_weight": [0.1, 0.3, 1.0, 3.0], "scale_by_range": [True, False]},
    "opta": {"reg": [0.02, 0.05, 0.1], "query_prior": PRIORS},
    "pt_map": {"scale": [5.0, 10.0, 20.0], "query_prior": PRIORS},
    "tim_adm": {"marginal": [0.1, 0.3, 1.0], "scale": [7.5, 15.0, 30.0]},
    "tim_gd": {"marginal": [0.1, 1.0], "learning_rate": [1e-4, 1e-3]},
    "alpha_tim": {"alpha": [2.0, 5.0], "learning_rate": [1e-4, 1e-3]},
    "unem_gaussian": None,
    "hard_em_dirichlet": {"scale": [10.0, 30.0, 100.0]},
    "em_dirichlet": {"scale": [10.0, 30.0, 100.0]},
    "unem_dirichlet": None,
    "putm": {"query_prior": PRIORS},
}
TUNED = Path(__file__).parent / "tuned"
VALIDATION_EPISODES = 500
# PUTM takes 0.4 to 1.3 s an episode on one core: as many episodes as its paper has, and what it is compared to on the same
# ones, too.
SLOW, SLOW_EPISODES, SLOW_VALIDATION_EPISODES = "putm", 1000, 100
SLOW_PRIOR = {"balanced": "balanced", "dirichlet": "unknown"}  # the paper has values for both
NOT_FITTED = "the initial values; it is meant to be fitted on validation episodes (experiments/unem.py)."
BESIDE_SLOW = ("soft_kmeans", "protonet", "nearest_neighbour", "simple_shot", "logistic_regression", "ridge")


def setting(run: Run) -> str:
    return f"{run.dataset} {run.protocol}"


def searched(run: Run) -> dict | None:
    """What the search for this run found: {"chosen": ..., "reason": ..., "candidates": [...]}."""
    path = TUNED / f"{run.method}.json"
    return json.loads(path.read_text()).get(setting(run)) if path.is_file() else None


def tuned(run: Run) -> Run | None:
    """The run with tuned values; None where there are none or they are the defaults."""
    found = searched(run)
    changed = found and dataclasses.replace(run, parameters=found["chosen"])
    return changed if changed and changed.parameters != run.parameters else None


def search(method: str, source: FeatureSource, store: Store, options: argparse.Namespace) -> None:
    """Tune `method` for the settings that `options` leave and keep what was found, setting by setting."""
    path, episodes = TUNED / f"{method}.json", SLOW_VALIDATION_EPISODES if method == SLOW else VALIDATION_EPISODES
    record = json.loads(path.read_text()) if path.is_file() else {}
    for run in of_setting(small_data_runs(__file__, method), options.dataset, options.distribution, options.shots):
        found = tune(dataclasses.replace(run, split="val", episodes=episodes), GRIDS[method],
                     source=source, store=store)
        record[setting(run)] = {
            "chosen": found.chosen, "reason": found.reason, "validation_episodes": episodes,
            "candidates": [[{name: r.record.parameters[name] for name in GRIDS[method]}, r.accuracy.percent()]
                           for r in found.candidates]}
        TUNED.mkdir(exist_ok=True)
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        print(f"{method}, {setting(run)}: {found.chosen} ({found.reason})", flush=True)


def published_runs() -> list[Run]:
    runs = [run for method in GRIDS if method != SLOW for run in small_data_runs(__file__, method)]
    runs += [run for method in BESIDE_SLOW for run in small_data_runs(__file__, method, episodes=SLOW_EPISODES)]
    return runs + [run for distribution, prior in SLOW_PRIOR.items() for run in small_data_runs(
        __file__, SLOW, parameters={"query_prior": prior}, distributions=(distribution,), episodes=SLOW_EPISODES)]


def tables(results: list[Result]) -> None:
    """One table for each setting of which there are all results into results/, and one of the slow method."""
    planned = Counter((setting(run), run.episodes) for run in RUNS)
    for (name, episodes), count in planned.items():
        same = [r for r in results if (setting(r.record), r.record.episodes) == (name, episodes)]
        if len(same) < count:
            continue
        published = {run.method: run.parameters for run in PUBLISHED if (setting(run), run.episodes) == (name, episodes)}
        default = [r for r in same if r.record.parameters == published[r.record.method]]
        changed = [r for r in same if r not in default]
        found = {r.record.method: searched(r.record) for r in same}
        reasons = {method: f"tuned values {record['chosen']}, {record['reason']}."
                   for method, record in found.items() if record}
        reasons |= {method: NOT_FITTED for method in found if method.startswith("unem")}
        table = reference_table(default, changed, ("soft_kmeans", "best inductive"), reasons)
        table.print()
        ending = f" {SLOW}" if episodes == SLOW_EPISODES else ""
        write_table(__file__, re.sub("[^a-z0-9]+", "_", (name + ending).lower()).strip("_"), table)


def with_tuned(runs: list[Run]) -> list[Run]:
    return [*runs, *filter(None, map(tuned, runs))]


PUBLISHED = published_runs()
RUNS = with_tuned(PUBLISHED)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tune", nargs="*", choices=[name for name, grid in GRIDS.items() if grid])
    parser.add_argument("--data-root")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--dataset")
    parser.add_argument("--distribution")
    parser.add_argument("--shots", type=int, nargs="+")
    options, _ = parser.parse_known_args()
    if options.tune is not None:
        features = FeatureSource(options.data_root, options.runs / "cache", progress=True)
        for each in options.tune or [name for name, grid in GRIDS.items() if grid]:
            search(each, features, Store(options.runs / "tune"), options)
        RUNS = with_tuned(PUBLISHED)
        at = sys.argv.index("--tune")
        del sys.argv[at : at + 1 + len(options.tune)]
    tables(run_experiment(__file__, RUNS, rows=("dataset", "method")))
