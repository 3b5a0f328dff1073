"""UNEM: unrolled generalised EM with values learned on validation episodes (Zhou et al. 2024, arXiv:2412.16739).

    python experiments/unem.py --data-root DATA --fit         # learn, about 6 minutes on two CPU cores, then evaluate
    python experiments/unem.py --data-root DATA               # evaluate with the values in weights/, about 5 minutes
    fewshot table experiments/unem.py --data-root DATA        # measured beside published, evaluates nothing

The paper: PADDLE's protocol (all classes as ways, queries from 5), 1,000 validation episodes, 100 Adam steps, one fit for
each data set and number of shots. Needs mini_imagenet and weights/resnet18_paddle_mini_imagenet.safetensors for the
released 5-shot values (rounded to two decimals). The published average over 11 data sets on CLIP features has no run here,
see em_dirichlet.py.

Beside it, learned here: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, 20-way 1- and 5-shot
with 60 queries from 5 classes (validation on Caltech-101: 16-way, it has no more classes); 10,000 test episodes, with the
unlearned initialisation, PADDLE and the nearest class mean, and their paired differences in results/.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file, write_differences
from fewshot.tuning.search import fit_run
from fewshot.tuning.unrolled import load_fitted, save_fitted

PROTOCOL = {"ways": 20, "k_eff": 5, "queries": 3}
VALIDATION = {"omniglot": PROTOCOL, "caltech101": {"ways": 16, "k_eff": 5, "queries": 4}}


def raw(*values: float) -> list[float]:
    """Inverse of softplus."""
    return [math.log(math.expm1(value)) for value in values]


RELEASED = {"learned": {
    "scale": raw(1.07)[0], "prior": raw(1.33, 6.03, 5.76, 4.68, 2.85, 1.72, 1.41, 1.23, 1.00, 0.71),
    "temperature": raw(0.29, 1.25, 1.94, 1.91, 1.68, 0.86, 0.28, 0.20, 0.16, 0.09)}}


def small_data(method: str) -> list[Run]:
    return small_data_runs(__file__, method, distributions=("k_eff",), **PROTOCOL)


def fitted_file(run: Run) -> str:
    return weights_file(__file__, f"unem_gaussian_{run.dataset}_{run.shots}s")


def learned_runs() -> list[Run]:
    return [dataclasses.replace(run, parameters=load_fitted(fitted_file(run)).parameters)
            for run in small_data("unem_gaussian") if Path(fitted_file(run)).is_file()]


def learn(root: str | None) -> None:
    for run in small_data("unem_gaussian"):
        # The method sees distances only: in the span of an episode's points it learns the same, from 1,280 features faster.
        found = fit_run(dataclasses.replace(run, split="val", transforms="span", episodes=1000, **VALIDATION[run.dataset]),
                        root=root)
        path = save_fitted(fitted_file(run), found)
        print(f"{path}: loss {found.history[0]:.3f} -> {min(found.history):.3f}", flush=True)


UNLEARNED = [
    Run(dataset="mini_imagenet", backbone="resnet18", weights=weights_file(__file__, "resnet18_paddle_mini_imagenet"),
        method="unem_gaussian", parameters=RELEASED, ways=20, shots=5, queries=4, query_distribution="k_eff", k_eff=5,
        episodes=1000),
    *(run for method in ("protonet", "paddle", "unem_gaussian") for run in small_data(method))]
RUNS = UNLEARNED + learned_runs()
PUBLISHED = numbers("unem_dirichlet", "average of 11", "CLIP-RN50", "arXiv:2412.16739 (papernotes summary page, not table)",
                    (4, 77.8), ways=None, query_distribution="k_eff")

if __name__ == "__main__":
    if "--fit" in sys.argv:
        sys.argv.remove("--fit")
        learn(sys.argv[sys.argv.index("--data-root") + 1] if "--data-root" in sys.argv else None)
        RUNS = UNLEARNED + learned_runs()
    results = run_experiment(__file__, RUNS, published=PUBLISHED)
    for dataset in ("omniglot", "caltech101"):
        for shots in (1, 5):
            same = [r for r in results
                    if (r.record.dataset, r.record.shots, r.record.episodes) == (dataset, shots, Run().episodes)]
            if len(same) > 1:  # not in a trial with fewer episodes
                write_differences(__file__, same, f"differences_{dataset}_{shots}s")
