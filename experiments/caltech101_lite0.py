"""Every method on Caltech-101 with EfficientNet-Lite0 features, balanced and Dirichlet(2) queries.

    python experiments/caltech101_lite0.py --data-root DATA

24 test classes, 5-way 1- and 5-shot and 20-way 1-shot, 10,000 episodes. The backbone was trained on ImageNet, which has
classes like these: the numbers compare methods, they are not few-shot accuracy on unseen kinds of objects. Published
defaults throughout, nothing is tuned. About half an hour on two CPU cores; finished runs are kept and found again.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment

FIRST = ("protonet", "nearest_neighbour", "simple_shot", "matching_net", "logistic_regression", "ridge", "soft_kmeans")
# The transductive family; with 20 ways an episode has 300 queries, where only some take well under 0.02 s an episode.
FURTHER = {(5, 1): ("easy_transductive", "pt_map", "opta", "laplacian_shot", "bd_cspn", "kmeans", "slk_means", "paddle",
                    "unem_gaussian", "tim_adm"),
           (5, 5): ("easy_transductive", "pt_map", "opta", "laplacian_shot", "bd_cspn", "kmeans", "slk_means", "paddle",
                    "unem_gaussian", "tim_adm"),
           (20, 1): ("laplacian_shot", "bd_cspn", "kmeans")}
RUNS = [Run(dataset="caltech101", backbone="efficientnet_lite0", method=method, ways=ways, shots=shots,
            query_distribution=distribution)
        for methods in ({protocol: FIRST for protocol in FURTHER}, FURTHER) for (ways, shots), names in methods.items()
        for distribution in ("balanced", "dirichlet") for method in names]

if __name__ == "__main__":
    run_experiment(__file__, RUNS, differences=True)
