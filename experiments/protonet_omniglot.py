"""Prototypical Networks on Omniglot (Snell et al. 2017, arXiv:1703.05175), split of Vinyals et al. with rotations.

    python experiments/protonet_omniglot.py --data-root DATA            # two minutes: the weights are in experiments/weights
    python experiments/protonet_omniglot.py --data-root DATA --train    # about an hour on one CPU core

Data: the two zips of Omniglot. Conv-4 at 28x28; 60-way 1-shot episodes with 5 queries per class; Adam 1e-3 with a cosine
to 0 over 6,000 steps, bfloat16 convolutions: 19 minutes on one core. The 172 validation characters with their rotations
choose the weights. Test: 10,000 episodes of the 1,692 test classes.

Differences from the paper: it trains a model of its own for 5 shots, halves the rate every 2,000 episodes, trains on the
validation classes, too, after it has chosen the number of epochs on them, and evaluates 1,000 episodes.

Three seeds of the training are evaluated at 5-way 1-shot. `results/protonet_omniglot_seeds.md` reports the spread between
them, which the interval over episodes does not cover.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import TrainingPlan, run_experiment, weights_file, write_table
from fewshot.reporting.metric_tables import seeds_table
from fewshot.training import TrainConfig

DATA = {"protocol": "vinyals", "rotations": True}
SEEDS = (0, 1, 2)


NAMES = [f"conv4_omniglot_protonet_seed{seed}" for seed in SEEDS]


def recipe(seed: int) -> TrainingPlan:
    config = TrainConfig(method="protonet", ways=60, shots=1, queries=5, steps=6000, schedule="cosine", precision="bfloat16",
                         validate_every=1000, validation_ways=20, validation_shots=1, validation_queries=5,
                         validation_episodes=300, seed=seed)
    return TrainingPlan(config, "omniglot", data_options=DATA)


def run_of(name: str, ways: int, shots: int) -> Run:
    return Run(dataset="omniglot", data_options=DATA, weights=weights_file(__file__, name), ways=ways, shots=shots)


PLANS = {name: recipe(seed) for name, seed in zip(NAMES, SEEDS, strict=True)}
RUNS = [*(run_of(NAMES[0], ways, shots) for ways in (5, 20) for shots in (1, 5)),
        *(run_of(name, 5, 1) for name in NAMES[1:])]
_SOURCE = "arXiv:1703.05175, quoted by oscarknagg/few-shot"
PUBLISHED = (*numbers("protonet", "omniglot", "conv4", _SOURCE, (1, 98.8), (5, 99.7)),
             *numbers("protonet", "omniglot", "conv4", _SOURCE, (1, 96.0), (5, 98.9), ways=20))

if __name__ == "__main__":
    results = run_experiment(__file__, RUNS, published=PUBLISHED, plans=PLANS)
    seeds = [r for r in results if r.protocol == "5-way 1-shot" and r.record.episodes == Run.episodes]
    if len(seeds) == len(SEEDS):
        table = seeds_table(seeds)
        table.print()
        write_table(__file__, "seeds", table)
