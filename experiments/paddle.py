"""PADDLE: many classes in the support, few of them among the queries (Martin et al. 2022, arXiv:2210.14545).

    python experiments/paddle.py --data-root DATA
    fewshot table experiments/paddle.py --data-root DATA      # measured beside published, evaluates nothing

The paper: all 20 test classes of mini-ImageNet as ways, queries from 5 of them, 5, 10 and 20 shots, 1,000 episodes. It draws
75 queries; here they are a multiple of the ways, so 80. Needs mini_imagenet and
weights/resnet18_paddle_mini_imagenet.safetensors. tiered-ImageNet with its 160 ways would need 160 queries and is left out.

The published numbers at hand are those of the comparison on CLIP features (Martin et al. 2024: 4 shots of every class,
queries from 5 classes). They have no run: CLIP is not in the registry, and that protocol takes support and queries from
different splits. Beside it: 20-way 5-shot, 60 queries, on Omniglot with the Conv-4 trained here and on Caltech-101 with
EfficientNet-Lite0, 10,000 episodes, with the nearest class mean and soft k-means (lambda = 0) for comparison. About
5 minutes on two CPU cores, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

METHODS = (("paddle", {}), ("paddle", {"prior_weight": 0.0}), ("protonet", {}))
RUNS = [Run(dataset="mini_imagenet", backbone="resnet18", weights=weights_file(__file__, "resnet18_paddle_mini_imagenet"),
            method="paddle", ways=20, shots=shots, queries=4, query_distribution="k_eff", k_eff=5, episodes=1000)
        for shots in (5, 10, 20)]
for method, parameters in METHODS:
    RUNS += small_data_runs(__file__, method, parameters=parameters, shots=(5,), distributions=("k_eff",), ways=20, k_eff=5,
                            queries=3)

SOURCE = "CVPR24 Transductive zero-/few-shot CLIP (repo figure table_2.png SegoleneMartin/transductive-CLIP)"
PUBLISHED = tuple(number for dataset, accuracy in (("caltech101", 81.9), ("average of 11", 60.9)) for number in numbers(
    "paddle", dataset, "CLIP-RN50", SOURCE, (4, accuracy), ways=None, query_distribution="k_eff"))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
