"""NSAE across domains: does reconstructing the images while training help on images of another kind? (Liang et al. 2021,
arXiv:2108.05028)

    python experiments/nsae.py --data-root DATA              # the weights come from `python experiments/recipes.py --train`

The paper trains a ResNet-10 on miniImageNet, fine-tunes on the support set and tests on crop diseases, satellite, skin and
chest images, 5-way 5-, 20- and 50-shot, 600 episodes; none of these data sets is among those of this project, no published
number is at hand, and its fine-tuning in two steps (reconstruction, then classes) is not implemented. Here the recipe `nsae`
is compared with plain cross-entropy (`simpleshot`), both of recipes.py with less training than is usual: ResNet-12 of
Caltech-101 on photographs of other classes and on Omniglot's drawings, Conv-4 of Omniglot on other alphabets and on the
photographs of Caltech-101 in grey. Logistic regression on unit-length features, 5-way 1- and 5-shot, 10,000 episodes; about
10 minutes on two CPU cores.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment, weights_file

TRAINED_ON = {"resnet12": "caltech101", "conv4": "omniglot"}
DATA = {"caltech101": {"image_size": 64}, "omniglot": {}}
RUNS = [Run(dataset=dataset, data_options=options, backbone=backbone, method="logistic_regression",
            weights=weights_file(__file__, f"{backbone}_{base}_{recipe}"), shots=shots)
        for backbone, base in TRAINED_ON.items() for dataset, options in DATA.items()
        for recipe in ("simpleshot", "nsae") for shots in (1, 5)]
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("backbone", "weights", "dataset"))
