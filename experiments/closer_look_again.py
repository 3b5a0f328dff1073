"""Adaptation algorithms on one feature extractor, after "A Closer Look at Few-shot Classification Again" (Luo et al. 2023,
arXiv:2301.12246).

    python experiments/closer_look_again.py --data-root DATA

The paper trains once and compares ways to adapt: nearest class centroid (`simple_shot` by cosine), logistic regression,
matching, MetaOpt's ridge head, and several that fine-tune the backbone; 2,000 tasks. Here the four that leave the backbone
alone are compared, 5-way 1-, 5- and 10-shot, on Caltech-101 with EfficientNet-Lite0 (trained on ImageNet, which has
classes like these) and with the ResNet-12 of recipes.py, and on Omniglot with the Conv-4 of omniglot_background.py (1 and 5
shots: it has 20 drawings a character). The paper's data set, Meta-Dataset, is not among those of this project, and no
published number is at hand. recipes.py has the other half of the question: whether the order of the heads depends on the
training. About 5 minutes on two CPU cores without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment, weights_file

HEADS = {"simple_shot": {"norm": "l2n", "metric": "cosine", "scale": 10.0}, "logistic_regression": {},
         "matching_net": {}, "ridge": {}}
EXTRACTORS = ({"dataset": "caltech101", "backbone": "efficientnet_lite0"},
              {"dataset": "caltech101", "data_options": {"image_size": 64}, "backbone": "resnet12",
               "weights": weights_file(__file__, "resnet12_caltech101_simpleshot")},
              {"dataset": "omniglot", "weights": weights_file(__file__, "conv4_omniglot_background")})
RUNS = [Run(method=method, parameters=parameters, shots=shots, episodes=2000, **extractor)
        for extractor in EXTRACTORS for method, parameters in HEADS.items()
        for shots in ((1, 5) if extractor["dataset"] == "omniglot" else (1, 5, 10))]
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("dataset", "backbone", "method"))
