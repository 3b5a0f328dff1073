"""RFS: logistic regression on features of a network trained by cross-entropy, or distilled (Tian et al. 2020,
arXiv:2003.11539).

    python experiments/rfs.py --data-root DATA
    python experiments/rfs.py --data-root DATA --train resnet12_mini_imagenet_rfs_simple resnet12_mini_imagenet_rfs_distill
    fewshot table experiments/rfs.py --data-root DATA        # measured beside published, evaluates nothing

The paper: recipe `rfs`, one generation (RFS-simple) or two (RFS-distill); 5-way, 15 queries per class, 600 episodes,
unit-length features, logistic regression with C = 1 on the support and four further augmented copies of every support
image. Here the copies are left out, which matters most at 1 shot: a deviation. Needs mini_imagenet, and weights that --train
makes with the paper's settings, for which a GPU is needed.

Beside it, 10,000 episodes: Omniglot with the Conv-4 of omniglot_background.py and Caltech-101 with EfficientNet-Lite0, and
the distilled networks of recipes.py against those without distillation (weights by `python experiments/recipes.py --train`).
About 5 minutes on two CPU cores without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import TrainingPlan, run_experiment, small_data_runs, weights_file
from fewshot.training import recipe_config

HEAD = "logistic_regression"
KINDS = {"rfs_simple": 1, "rfs_distill": 2}
BACKBONES = ("conv4", "resnet12", "resnet18")
PLANS = {f"{backbone}_mini_imagenet_{kind}": TrainingPlan(recipe_config("rfs"), "mini_imagenet", backbone=backbone,
                                                      generations=generations)
           for backbone in BACKBONES for kind, generations in KINDS.items()}
RUNS = [Run(dataset="mini_imagenet", backbone=backbone, weights=weights_file(__file__, f"{backbone}_mini_imagenet_{kind}"),
            method=HEAD, shots=shots, episodes=600) for backbone in BACKBONES for kind in KINDS for shots in (1, 5)]
RUNS += small_data_runs(__file__, HEAD, distributions=("balanced",))
RUNS += [Run(dataset=dataset, data_options=options, backbone=backbone, method=HEAD, shots=shots,
             weights=weights_file(__file__, f"{backbone}_{dataset}_{recipe}"))
         for dataset, backbone, options in (("omniglot", "conv4", {}), ("caltech101", "resnet12", {"image_size": 64}))
         for recipe in ("simpleshot", "rfs") for shots in (1, 5)]

_OWN = "LibFewShot reproduction (RL-VIG/LibFewShot reproduce/*/README.md)"
PUBLISHED = (*numbers(HEAD, "mini_imagenet", "resnet12", "arXiv:2003.11539 (quoted by LibFewShot)",
                      (1, 62.02, 0.63), (5, 79.64, 0.44)),
             *numbers(HEAD, "mini_imagenet", "resnet12", _OWN, (1, 62.8, 0.52), (5, 79.57, 0.39)),
             *numbers(HEAD, "mini_imagenet", "resnet12", _OWN, (1, 61.65, 0.35), (5, 78.88, 0.25)),
             *numbers(HEAD, "mini_imagenet", "resnet18", _OWN, (1, 61.65, 0.37), (5, 76.6, 0.28)),
             *numbers(HEAD, "mini_imagenet", "conv4", _OWN, (1, 47.97, 0.33), (5, 65.88, 0.3)))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED, plans=PLANS)
