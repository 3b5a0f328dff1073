"""alpha-TIM, and the benchmark of transductive methods under Dirichlet queries that came with it (Veilleux et al. 2021,
arXiv:2204.11181).

    python experiments/alpha_tim.py --data-root DATA
    fewshot table experiments/alpha_tim.py --data-root DATA   # measured beside published, evaluates nothing

The paper: 5-way, 75 queries in all, Dirichlet(2) or balanced, 10,000 episodes, one ResNet-18; hyper-parameters are those
of its configuration. Needs mini_imagenet and weights/resnet18_realistic_mini_imagenet.safetensors. The official sampler lets
support images into the query (0.2 % of the queries at 1 shot, 3 % at 20); here they never meet.

Beside it, the same methods on Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0; the two
gradient methods with 1,000 episodes, as their 1,000 steps take 0.1 s an episode at 1,280 features. About half an hour on
one CPU core, without the extraction.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

SHOTS = (1, 5, 10, 20)
BDCSPN = {"variant": "code", "queries": "unshifted"}
ALPHA_TIM = {"alpha": "auto", "cross_entropy": 1.0, "marginal": 1.0, "conditional": 1.0}
PARAMETERS = {
    "dirichlet": {"pt_map": {"variant": "official"}, "laplacian_shot": {"laplacian_weight": 0.7, "rectify": False},
                  "bd_cspn": BDCSPN, "tim_gd": {"cross_entropy": 1.0, "marginal": 1.0, "conditional": 1.0},
                  "alpha_tim": ALPHA_TIM},
    "balanced": {"pt_map": {"variant": "official"}, "laplacian_shot": {"laplacian_weight": "auto", "queries": "unshifted"},
                 "bd_cspn": BDCSPN, "tim_gd": {"cross_entropy": 1.0, "marginal": 10.0, "conditional": 1.0},
                 "alpha_tim": ALPHA_TIM}}
RUNS = [Run(dataset="mini_imagenet", backbone="resnet18", weights=weights_file(__file__, "resnet18_realistic_mini_imagenet"),
            method=method, parameters=parameters, shots=shots, query_distribution=distribution)
        for distribution, methods in PARAMETERS.items() for method, parameters in methods.items() for shots in SHOTS]
for distribution, methods in PARAMETERS.items():
    for method, parameters in methods.items():
        count = 1000 if method in ("tim_gd", "alpha_tim") else 10_000
        RUNS += [run for run in small_data_runs(__file__, method, parameters=parameters, episodes=count)
                 if run.query_distribution == distribution]

SOURCE = "arXiv:2204.11181 / NeurIPS21 (repo README oveilleux/Realistic_Transductive_Few_Shot)"
DERIVED = f"{SOURCE} [derived: dirichlet value + printed drop]"
ACCURACY = {
    "dirichlet": {"pt_map": (60.1, 67.1, 68.8, 70.4), "laplacian_shot": (65.4, 81.6, 84.1, 86.0),
                  "bd_cspn": (67.0, 80.2, 82.7, 84.6), "tim_gd": (67.3, 79.8, 82.3, 84.2),
                  "alpha_tim": (67.4, 82.5, 85.9, 87.9)},
    "balanced": {"pt_map": (76.9, 85.3, 86.8, 87.8), "laplacian_shot": (70.1, 82.1, 84.3),
                 "bd_cspn": (69.4, 82.0, 84.1, 85.7), "tim_gd": (71.8, 83.9, 86.1, 87.9)}}
PUBLISHED = ()
for distribution, source in (("dirichlet", SOURCE), ("balanced", DERIVED)):
    for method, values in ACCURACY[distribution].items():
        PUBLISHED += numbers(method, "mini_imagenet", "resnet18", source, *zip(SHOTS, values, strict=False),
                             query_distribution=distribution, **PARAMETERS[distribution][method])

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
