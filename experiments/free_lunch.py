"""Free lunch: distribution calibration with statistics of base classes (Yang, Liu, Xu 2021, arXiv:2101.06395).

    python experiments/free_lunch.py --data-root DATA

The paper: WRN-28-10 of S2M2, 5-way, 15 queries per class, 10,000 episodes, 750 samples per class. Needs mini_imagenet or cub
and weights/wrn28_10_s2m2_<data set>.safetensors. No published number is at hand. These runs take about 3 s an episode.

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, 2,000 episodes, 40 samples a class
(the regression on 750 samples of 1,280 features takes seconds), the paper's neighbours and one, base statistics before
Tukey's transform (as published) and after it, and logistic regression on the transformed features without samples. About
an hour on two CPU cores, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

FAST = {"samples": 40, "tolerance": 1e-2}
SMALL = {"episodes": 2000, "distributions": ("balanced",)}
RUNS = [Run(dataset=dataset, backbone="wrn28_10", weights=weights_file(__file__, f"wrn28_10_s2m2_{dataset}"),
            method="free_lunch", shots=shots) for dataset in ("mini_imagenet", "cub") for shots in (1, 5)]
for parameters in ({}, {"tukey_base": True}, {"tukey_base": True, "neighbours": 1}):
    RUNS += small_data_runs(__file__, "free_lunch", parameters={**FAST, **parameters}, **SMALL)
RUNS += small_data_runs(__file__, "logistic_regression", parameters={"norm": "un"}, transforms="tukey(0.5)", **SMALL)
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("backbone", "method", "parameters"))
