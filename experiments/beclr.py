"""BECLR's inference step OpTA: optimal-transport alignment of prototypes (Poulakakis-Daktylidis and Jamali-Rad, ICLR 2024).

    python experiments/beclr.py --data-root DATA
    python experiments/beclr.py --data-root DATA --train resnet18_beclr_mini_imagenet
    fewshot table experiments/beclr.py --data-root DATA       # measured beside published, evaluates nothing

The paper: self-supervised backbones, 5-way, 15 queries per class, 2,000 episodes; 5 passes at 1 shot, 1 pass and 0.3 of the
old prototypes otherwise. Needs mini_imagenet or tiered_imagenet and weights/resnet18_beclr_<data set>.safetensors, which
--train makes by the recipe `beclr`, a compact reading of the paper's training, on a GPU. No published number is at hand.

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0 (both trained with labels), 10,000
episodes. About 2 minutes on two CPU cores, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import TrainingPlan, run_experiment, small_data_runs, weights_file
from fewshot.training import recipe_config

PLANS = {f"resnet18_beclr_{dataset}": TrainingPlan(recipe_config("beclr"), dataset, backbone="resnet18")
           for dataset in ("mini_imagenet", "tiered_imagenet")}
ONE, MORE = {"passes": 5, "keep": 0.0}, {"passes": 1, "keep": 0.3}
PAPER = {"reg": 0.05, "C": 1.0, "variant": "official"}
RUNS = [Run(dataset=dataset, backbone="resnet18", weights=weights_file(__file__, f"resnet18_beclr_{dataset}"), method="opta",
            parameters={**PAPER, **passes}, shots=shots, episodes=2000)
        for dataset in ("mini_imagenet", "tiered_imagenet") for shots, passes in ((1, ONE), (5, MORE))]
RUNS += small_data_runs(__file__, "opta")
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS, plans=PLANS)
