"""PUTM: prototypes-oriented unbiased transfer with conditional transport (Tian et al. 2023, arXiv:2308.03047).

    python experiments/putm.py --data-root DATA
    fewshot table experiments/putm.py --data-root DATA        # measured beside published, evaluates nothing

The paper: 5-way, 75 queries, balanced and Dirichlet(2), 1, 3 and 5 shots, 1,000 episodes; an untrained navigator network is
trained on every episode, 1,530 steps, so the method is stochastic: three seeds of its initial weights. Needs mini_imagenet
and weights/resnet18_putm_mini_imagenet.safetensors, and some 8 hours. No published number is at hand.

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, 200 episodes for each of the three
seeds, which differ by 0.2 points at most. About 80 minutes on one CPU core, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

SEEDS = (0, 1, 2)
PRIOR = {"balanced": "balanced", "dirichlet": "unknown"}  # with "unknown" the paper's values for Dirichlet queries
RUNS = [Run(dataset="mini_imagenet", backbone="resnet18", weights=weights_file(__file__, "resnet18_putm_mini_imagenet"),
            method="putm", parameters={"query_prior": prior, "seed": seed, "variant": "official"}, shots=shots,
            query_distribution=distribution, episodes=1000)
        for distribution, prior in PRIOR.items() for shots in (1, 3, 5) for seed in SEEDS]
for distribution, prior in PRIOR.items():
    for seed in SEEDS:
        RUNS += small_data_runs(__file__, "putm", parameters={"query_prior": prior, "seed": seed}, episodes=200,
                                distributions=(distribution,))
PUBLISHED = ()

if __name__ == "__main__":
    run_experiment(__file__, RUNS)
