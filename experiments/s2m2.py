"""S2M2: logistic regression on unit features of a backbone trained with manifold mixup and rotations (arXiv:1907.12087).

    python experiments/s2m2.py --data-root DATA
    fewshot table experiments/s2m2.py --data-root DATA        # measured beside published, evaluates nothing

5-way, 15 queries per class, 10,000 episodes. The number published under "S2M2+LR" is a reproduction of LightningFSL, 5 times
2,000 episodes. The authors' own evaluation trains a cosine classifier on the support for 300 epochs instead, and takes all
other images of a class as queries. Needs mini_imagenet and weights/wrn28_10_s2m2_mini_imagenet.safetensors.

Beside it: the same classifier on Omniglot with the Conv-4 trained here and on Caltech-101 with EfficientNet-Lite0. About
2 minutes on two CPU cores, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

METHOD = "logistic_regression"
RUNS = [Run(dataset="mini_imagenet", backbone="wrn28_10", weights=weights_file(__file__, "wrn28_10_s2m2_mini_imagenet"),
            method=METHOD, shots=shots) for shots in (1, 5)]
RUNS += small_data_runs(__file__, METHOD, distributions=("balanced",))

SOURCE = "LightningFSL README (2000 episodes x5), Frankluox/LightningFSL"
PUBLISHED = numbers(METHOD, "mini_imagenet", "wrn28_10", SOURCE, (1, 62.36, 0.42), (5, 82.01, 0.24))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
