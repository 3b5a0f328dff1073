"""SimpleShot: nearest class mean of centred, unit-length features (Wang et al. 2019, arXiv:1911.04623).

    python experiments/simpleshot.py --data-root DATA
    python experiments/simpleshot.py --data-root DATA --train resnet12_mini_imagenet_simpleshot
    fewshot table experiments/simpleshot.py --data-root DATA        # measured beside published, evaluates nothing

The paper: cross-entropy training (recipe `simpleshot`), 5-way, 15 queries per class, 10,000 episodes; features as they are
(UN), of unit length (L2N), or minus the base mean and then of unit length (CL2N, the headline). Needs mini_imagenet,
tiered_imagenet or cub, and weights that --train makes with the paper's settings, for which a GPU is needed.

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, all three transforms, 10,000
episodes, about 2 minutes on two CPU cores without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import TrainingPlan, run_experiment, small_data_runs, weights_file
from fewshot.training import recipe_config

NORMS = ("un", "l2n", "cl2n")
PLACES = (("mini_imagenet", "conv4"), ("mini_imagenet", "resnet12"), ("mini_imagenet", "resnet18"),
          ("mini_imagenet", "wrn28_10"), ("tiered_imagenet", "resnet12"), ("tiered_imagenet", "wrn28_10"),
          ("cub", "resnet18"))
PLANS = {f"{backbone}_{dataset}_simpleshot": TrainingPlan(recipe_config("simpleshot"), dataset, backbone=backbone)
           for dataset, backbone in PLACES}
RUNS = [Run(dataset=dataset, backbone=backbone, weights=weights_file(__file__, f"{backbone}_{dataset}_simpleshot"),
            method="simple_shot", parameters={"norm": norm}, shots=shots)
        for dataset, backbone in PLACES for norm in NORMS for shots in (1, 5)]
RUNS += [run for norm in NORMS for run in small_data_runs(__file__, "simple_shot", parameters={"norm": norm})]

_LAPLACIAN = "arXiv:2006.15486 (repo README imtiazziko/LaplacianShot) quoting"
_EASY = "arXiv:2201.09699 (repo README ybendou/easy) quoting"
PUBLISHED = (*numbers("simple_shot", "mini_imagenet", "wrn28_10", f"{_LAPLACIAN} 1911.04623", (1, 65.87), (5, 82.09)),
             *numbers("simple_shot", "tiered_imagenet", "wrn28_10", f"{_LAPLACIAN} 1911.04623", (1, 70.9), (5, 85.76)),
             *numbers("simple_shot", "cub", "resnet18", _LAPLACIAN, (1, 70.28), (5, 86.37)),
             *numbers("simple_shot", "mini_imagenet", "resnet12", _EASY, (1, 62.85, 0.2), (5, 80.02, 0.14)),
             *numbers("simple_shot", "tiered_imagenet", "resnet12", _EASY, (1, 69.09, 0.22), (5, 84.58, 0.16)),
             *numbers("simple_shot", "mini_imagenet", "conv4",
                      "arXiv:2210.02476 (repo figure mini.png mayug/BaseTransformers)", (1, 49.69, 0.19), (5, 66.92, 0.17)))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED, plans=PLANS)
