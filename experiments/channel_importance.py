"""Channel Importance: a simple transform of features before the classifier (Luo, Xu, Xu 2022, arXiv:2206.08126).

    python experiments/channel_importance.py --data-root DATA

The paper: 5-way 5-shot, 15 queries per class, 2,000 episodes on 19 target data sets, images resized to 92 and cropped to 84.
Its code applies the transform before the unit length for the nearest class mean, and after it for logistic regression; here
each stands beside the same classifier without. The paper's k = 1.3; "released" has the offset of the released code, which
the variant "sane" has not. Needs mini_imagenet and weights/resnet12_channel_importance_mini_imagenet.safetensors for a
backbone like the paper's. No published number is at hand.

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, 10,000 episodes. About 5 minutes on
two CPU cores, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

HEADS = (("simple_shot", {"norm": "un", "metric": "cosine"},
          ("l2", "channel_importance(1.3),l2", "channel_importance(1.3,released),l2")),
         ("logistic_regression", {"norm": "un"},
          ("l2", "l2,channel_importance(1.3)", "l2,channel_importance(1.3,released)")))
RUNS = []
for method, parameters, chains in HEADS:
    for chain in chains:
        RUNS.append(Run(dataset="mini_imagenet", backbone="resnet12", shots=5, episodes=2000, method=method,
                        weights=weights_file(__file__, "resnet12_channel_importance_mini_imagenet"), parameters=parameters,
                        transforms=chain))
        RUNS += small_data_runs(__file__, method, parameters=parameters, transforms=chain, distributions=("balanced",))
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("backbone", "method", "transforms"))
