"""Every method on Caltech-101 with EfficientNet-Lite0 features, balanced and Dirichlet(2) queries.

    python experiments/caltech101_lite0.py --data-root DATA

24 test classes, 5-way 1- and 5-shot and 20-way 1-shot, 10,000 episodes. The backbone was trained on ImageNet, which has
classes like these: the numbers compare methods, they are not few-shot accuracy on unseen kinds of objects. Published
defaults throughout, nothing is tuned. About an hour on two CPU cores; finished runs are kept and found again.
"""

from __future__ import annotations

from fewshot.experiment import run_experiment, write_differences
from fewshot.run import Run

INDUCTIVE = ("protonet", "nearest_neighbour", "simple_shot", "matching_net", "logistic_regression", "ridge")
TRANSDUCTIVE = ("soft_kmeans", "easy_transductive", "pt_map", "opta", "laplacian_shot", "bd_cspn", "kmeans", "slk_means",
                "slk_ms", "hct_adapt", "paddle", "unem_gaussian", "tim_adm")
PROTOCOLS = ((5, 1), (5, 5), (20, 1))
RUNS = [Run(dataset="caltech101", backbone="efficientnet_lite0", method=method, ways=ways, shots=shots,
            query_distribution=distribution)
        for ways, shots in PROTOCOLS for distribution in ("balanced", "dirichlet") for method in INDUCTIVE + TRANSDUCTIVE]

if __name__ == "__main__":
    results = run_experiment(__file__, RUNS)
    for ways, shots in PROTOCOLS:
        for distribution in ("balanced", "dirichlet"):
            same = [r for r in results if (r.run.ways, r.run.shots, r.run.query_distribution) == (ways, shots, distribution)]
            write_differences(__file__, same, f"differences_{ways}w{shots}s_{distribution}")
