"""TIM: transductive information maximisation, by gradient descent and by alternating directions (Boudiaf et al. 2020,
arXiv:2008.11297).

    python experiments/tim.py --data-root DATA
    fewshot table experiments/tim.py --data-root DATA         # measured beside published, evaluates nothing

The paper: 10,000 episodes, 15 queries per class; loss weights 0.1, 1, 0.1, scale 15; TIM-GD 1,000 Adam steps of 1e-4,
TIM-ADM 150 rounds. Needs mini_imagenet, tiered_imagenet or cub and, for each, weights of a network trained with
cross-entropy and label smoothing 0.1: weights/<backbone>_tim_<data set>.safetensors for resnet18 and wrn28_10 (resnet18
only for cub). The paper's mini-ImageNet to CUB (70.3, 71.0) is left out: it would be the CUB run with other weights.

Beside it: Omniglot with the Conv-4 trained here, Caltech-101 with EfficientNet-Lite0, 10,000 episodes. The 1,000 steps of
TIM-GD take 0.1 s an episode at 1,280 features: about an hour on two CPU cores, without the extraction. Those of
experiments/transductive.py are the same runs, and found if it was run before.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

GD = {"cross_entropy": 0.1, "marginal": 1.0, "conditional": 0.1, "scale": 15.0, "iterations": 1000, "learning_rate": 1e-4}
ADM = {"cross_entropy": 0.1, "marginal": 1.0, "conditional": 0.1, "scale": 15.0, "iterations": 150}
METHODS = {"tim_gd": GD, "tim_adm": ADM}
# (data set, backbone, ways, shots)
PLACES = [(dataset, backbone, 5, shots) for dataset in ("mini_imagenet", "tiered_imagenet")
          for backbone in ("resnet18", "wrn28_10") for shots in (1, 5)]
PLACES += [("cub", "resnet18", 5, 5), *(("mini_imagenet", "resnet18", ways, shots) for ways in (10, 20) for shots in (1, 5))]
RUNS = [Run(dataset=dataset, backbone=backbone, weights=weights_file(__file__, f"{backbone}_tim_{dataset}"), method=method,
            parameters=parameters, ways=ways, shots=shots)
        for method, parameters in METHODS.items() for dataset, backbone, ways, shots in PLACES]
RUNS += small_data_runs(__file__, "tim_adm") + small_data_runs(__file__, "tim_gd")

SOURCE = "arXiv:2008.11297 (repo README mboudiaf/TIM)"
PUBLISHED = (
    *numbers("tim_gd", "mini_imagenet", "resnet18", SOURCE, (1, 73.9), (5, 85.0), **GD),
    *numbers("tim_gd", "tiered_imagenet", "resnet18", SOURCE, (1, 79.9), (5, 88.5), **GD),
    *numbers("tim_gd", "mini_imagenet", "wrn28_10", SOURCE, (1, 77.8), (5, 87.4), **GD),
    *numbers("tim_gd", "tiered_imagenet", "wrn28_10", SOURCE, (1, 82.1), (5, 89.8), **GD),
    *numbers("tim_gd", "cub", "resnet18", SOURCE, (5, 90.8), **GD),
    *numbers("tim_gd", "mini_imagenet", "resnet18", SOURCE, (1, 56.1), (5, 72.8), ways=10, **GD),
    *numbers("tim_gd", "mini_imagenet", "resnet18", SOURCE, (1, 39.3), (5, 59.5), ways=20, **GD),
    *numbers("tim_adm", "mini_imagenet", "resnet18", SOURCE, (1, 73.6), (5, 85.0), **ADM),
    *numbers("tim_adm", "tiered_imagenet", "resnet18", SOURCE, (1, 80.0), (5, 88.5), **ADM),
    *numbers("tim_adm", "mini_imagenet", "wrn28_10", SOURCE, (1, 77.5), (5, 87.2), **ADM),
    *numbers("tim_adm", "tiered_imagenet", "wrn28_10", SOURCE, (1, 82.0), (5, 89.7), **ADM),
    *numbers("tim_adm", "cub", "resnet18", SOURCE, (5, 90.7), **ADM),
    *numbers("tim_adm", "mini_imagenet", "resnet18", SOURCE, (1, 56.0), (5, 72.9), ways=10, **ADM),
    *numbers("tim_adm", "mini_imagenet", "resnet18", SOURCE, (1, 39.5), (5, 58.8), ways=20, **ADM),
)

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
