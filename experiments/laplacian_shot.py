"""LaplacianShot: Laplacian-regularised few-shot learning (Ziko et al. 2020, arXiv:2006.15486).

    python experiments/laplacian_shot.py --data-root DATA
    fewshot table experiments/laplacian_shot.py --data-root DATA      # measured beside published, evaluates nothing

The paper: 5-way, 15 queries per class, 10,000 episodes, CL2N features, rectified prototypes. lambda is chosen on validation
classes for each data set and shot; the values below are those stored with ResNet-18 (those of the WRN runs are not printed,
so the same are used: a deviation). Needs mini_imagenet, tiered_imagenet (wrn28_10) or cub (resnet18) and weights trained as
in SimpleShot: weights/<backbone>_simpleshot_<data set>.safetensors. iNat, 227-way (71.55), is not in the registry.

Beside it: Omniglot with the Conv-4 trained here, Caltech-101 with EfficientNet-Lite0. About 1 minute on two CPU cores,
without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

# data set -> backbone, lambda for 1 and for 5 shots
PLACES = {"mini_imagenet": ("wrn28_10", 0.7, 0.3), "tiered_imagenet": ("wrn28_10", 0.7, 0.1), "cub": ("resnet18", 0.7, 0.3)}
RUNS = [Run(dataset=dataset, backbone=backbone, weights=weights_file(__file__, f"{backbone}_simpleshot_{dataset}"),
            method="laplacian_shot", parameters={"laplacian_weight": weight}, shots=shots)
        for dataset, (backbone, *weights) in PLACES.items() for shots, weight in zip((1, 5), weights, strict=True)]
RUNS += small_data_runs(__file__, "laplacian_shot")

SOURCE = "arXiv:2006.15486 (repo README imtiazziko/LaplacianShot)"
PUBLISHED = (
    *numbers("laplacian_shot", "mini_imagenet", "wrn28_10", SOURCE, (1, 73.44), laplacian_weight=0.7),
    *numbers("laplacian_shot", "mini_imagenet", "wrn28_10", SOURCE, (5, 83.93), laplacian_weight=0.3),
    *numbers("laplacian_shot", "tiered_imagenet", "wrn28_10", SOURCE, (1, 78.80), laplacian_weight=0.7),
    *numbers("laplacian_shot", "tiered_imagenet", "wrn28_10", SOURCE, (5, 87.48), laplacian_weight=0.1),
    *numbers("laplacian_shot", "cub", "resnet18", SOURCE, (1, 79.90), laplacian_weight=0.7),
    *numbers("laplacian_shot", "cub", "resnet18", SOURCE, (5, 88.69), laplacian_weight=0.3),
)

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
