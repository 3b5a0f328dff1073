"""EASY: ensemble of augmented-shot Y-shaped networks (Bendou et al. 2022, arXiv:2201.09699), inductive and transductive.

    python experiments/easy.py --data-root DATA
    fewshot table experiments/easy.py --data-root DATA        # measured beside published, evaluates nothing

The paper: 5-way, 15 queries per class, 10,000 episodes. Inductive: features minus the base mean, unit length, nearest class
mean (`simple_shot`). Transductive: centred per episode, unit length, 30 rounds of soft k-means with scale 5
(`easy_transductive`). Features are averages over random crops (30 in the paper), for 2 x and 3 x ResNet-12 concatenated.

Needs tiered_imagenet and weights/resnet12_asy_tiered_imagenet.safetensors for the single network (ASY); its crops are not
averaged here: a deviation. The ensembles have no run; from the command line, for each split train and test:

    fewshot embed --dataset cub --split test --backbone resnet12 --weights W1 --crops "mean(30)" --out test1.safetensors
    fewshot join test1.safetensors test2.safetensors test3.safetensors --out test.safetensors
    fewshot eval --features test.safetensors --base-features train.safetensors --method simple_shot,easy_transductive

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0. About 2 minutes on two CPU cores,
without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

METHODS = ("simple_shot", "easy_transductive")
RUNS = [Run(dataset="tiered_imagenet", backbone="resnet12", weights=weights_file(__file__, "resnet12_asy_tiered_imagenet"),
            method=method, shots=shots) for method in METHODS for shots in (1, 5)]
RUNS += [run for method in METHODS for run in small_data_runs(__file__, method)]

SOURCE = "arXiv:2201.09699 (repo README ybendou/easy)"
# backbone -> data set -> 1 and 5 shots inductive, then transductive, each with its interval
ACCURACY = {
    "resnet12": {"tiered_imagenet": ((74.31, 0.22), (87.86, 0.15), (82.66, 0.27), (88.60, 0.14))},
    "3 x resnet12": {"mini_imagenet": ((71.75, 0.19), (87.15, 0.12), (84.04, 0.23), (89.14, 0.11)),
                     "tiered_imagenet": ((74.71, 0.22), (88.33, 0.14), (84.29, 0.24), (89.76, 0.14)),
                     "cub": ((78.56, 0.19), (91.93, 0.10), (90.56, 0.19), (93.79, 0.10)),
                     "cifar_fs": ((76.20, 0.20), (89.00, 0.14), (87.16, 0.21), (90.47, 0.15)),
                     "fc100": ((48.07, 0.19), (64.74, 0.19), (54.13, 0.24), (66.86, 0.19))},
    "2 x resnet12 (1/sqrt2)": {"mini_imagenet": ((70.63, 0.20), (86.28, 0.12), (81.70, 0.25), (88.29, 0.13)),
                               "cifar_fs": ((75.24, 0.20), (88.38, 0.14), (86.40, 0.23), (89.75, 0.15)),
                               "fc100": ((47.94, 0.19), (64.14, 0.19), (54.68, 0.25), (66.19, 0.20))}}
PUBLISHED = tuple(number for backbone, datasets in ACCURACY.items() for dataset, values in datasets.items()
                  for i, method in enumerate(METHODS)
                  for number in numbers(method, dataset, backbone, SOURCE, (1, *values[2 * i]), (5, *values[2 * i + 1])))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
