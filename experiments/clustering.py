"""Transductive few-shot learning: clustering is all you need? (Ziko et al. 2021, arXiv:2106.09516): K-means, K-modes, SLK.

    python experiments/clustering.py --data-root DATA
    fewshot table experiments/clustering.py --data-root DATA  # measured beside published, evaluates nothing

The paper: 5-way, 15 queries per class, 600 episodes, CL2N features, queries shifted onto the support mean. lambda of the SLK
methods is chosen on validation classes and not printed: 0.7, the value of the authors' script, is used. Needs mini_imagenet,
tiered_imagenet (wrn28_10) or cub (resnet18) and weights trained as in SimpleShot:
weights/<backbone>_simpleshot_<data set>.safetensors. K-modes is `slk_ms` without its graph.

Beside it: Omniglot with the Conv-4 trained here, Caltech-101 with EfficientNet-Lite0, 10,000 episodes. About 8 minutes on
one CPU core, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

KMEANS = {"clamp_support": False}  # as in the authors' code, here and below
KMODES = {"clamp_support": False, "laplacian_weight": 0.0}
SLK = {"clamp_support": False, "laplacian_weight": 0.7}
METHODS = (("kmeans", KMEANS), ("slk_ms", KMODES), ("slk_means", SLK), ("slk_ms", SLK))
PLACES = (("mini_imagenet", "wrn28_10"), ("tiered_imagenet", "wrn28_10"), ("cub", "resnet18"))
RUNS = [Run(dataset=dataset, backbone=backbone, weights=weights_file(__file__, f"{backbone}_simpleshot_{dataset}"),
            method=method, parameters=parameters, shots=shots, episodes=600)
        for dataset, backbone in PLACES for method, parameters in METHODS for shots in (1, 5)]
RUNS += [run for method, parameters in METHODS for run in small_data_runs(__file__, method, parameters=parameters)]

SOURCE = "arXiv:2106.09516 (repo README imtiazziko/SLK-few-shot)"
PUBLISHED = (
    *numbers("kmeans", "mini_imagenet", "wrn28_10", SOURCE, (1, 73.80), (5, 84.62), **KMEANS),
    *numbers("kmeans", "tiered_imagenet", "wrn28_10", SOURCE, (1, 79.78), (5, 87.23), **KMEANS),
    *numbers("kmeans", "cub", "resnet18", SOURCE, (1, 80.30), (5, 88.51), **KMEANS),
    *numbers("slk_ms", "mini_imagenet", "wrn28_10", SOURCE, (1, 74.78), (5, 84.45), **KMODES),
    *numbers("slk_ms", "tiered_imagenet", "wrn28_10", SOURCE, (1, 80.67), (5, 87.23), **KMODES),
    *numbers("slk_ms", "cub", "resnet18", SOURCE, (1, 81.73), (5, 88.58), **KMODES),
    *numbers("slk_means", "mini_imagenet", "wrn28_10", SOURCE, (1, 74.75), (5, 84.61), **SLK),
    *numbers("slk_means", "tiered_imagenet", "wrn28_10", SOURCE, (1, 80.55), (5, 87.57), **SLK),
    *numbers("slk_means", "cub", "resnet18", SOURCE, (1, 81.40), (5, 88.61), **SLK),
    *numbers("slk_ms", "mini_imagenet", "wrn28_10", SOURCE, (1, 75.17), (5, 84.28), **SLK),
    *numbers("slk_ms", "tiered_imagenet", "wrn28_10", SOURCE, (1, 81.13), (5, 87.69), **SLK),
    *numbers("slk_ms", "cub", "resnet18", SOURCE, (1, 81.88), (5, 88.55), **SLK),
)

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
