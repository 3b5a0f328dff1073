"""Prototypical Networks on Omniglot (Snell et al. 2017, arXiv:1703.05175), split of Vinyals et al. with rotations.

    python experiments/protonet_omniglot.py --data-root DATA            # two minutes: the weights are in experiments/weights
    python experiments/protonet_omniglot.py --data-root DATA --train    # about 100 minutes on one CPU core

Data: the two zips of Omniglot. Conv-4 at 28x28; 60-way episodes with 5 queries per class, one model for 1 and one for 5
shots, as in the paper; Adam 1e-3 with a cosine to 0 over 6,000 steps (1 shot) or 4,000 (5 shots), bfloat16 convolutions:
19 and 25 minutes on one core. The 172 validation characters with their rotations choose the weights. Test: 10,000 episodes
of the 1,692 test classes.

Differences from the paper: its schedule halves the rate every 2,000 episodes, it trains on the validation classes, too,
after it has chosen the number of epochs on them, and it evaluates 1,000 episodes.

The 1-shot model is trained with three seeds. `results/protonet_omniglot_seeds.md` reports the spread between them, which
the interval over episodes does not cover.
"""

from __future__ import annotations

from fewshot.experiment import Recipe, run_experiment, weights_file
from fewshot.published import numbers
from fewshot.run import Run
from fewshot.training import TrainConfig

DATA = {"protocol": "vinyals", "rotations": True}
SEEDS = (0, 1, 2)


def recipe(shots: int, steps: int, seed: int = 0) -> Recipe:
    config = TrainConfig(method="protonet", ways=60, shots=shots, queries=5, steps=steps, schedule="cosine",
                         precision="bfloat16", validate_every=1000, validation_ways=20, validation_shots=shots,
                         validation_queries=5, validation_episodes=300, seed=seed)
    return Recipe(config, "omniglot", data_options=DATA)


def run_of(name: str, ways: int, shots: int) -> Run:
    return Run(dataset="omniglot", data_options=DATA, weights=weights_file(__file__, name), ways=ways, shots=shots)


ONE_SHOT = [f"conv4_omniglot_protonet_1shot_seed{seed}" for seed in SEEDS]
FIVE_SHOT = "conv4_omniglot_protonet_5shot"
RECIPES = {**{name: recipe(1, 6000, seed) for name, seed in zip(ONE_SHOT, SEEDS, strict=True)}, FIVE_SHOT: recipe(5, 4000)}
RUNS = [*(run_of(name, ways, shots) for name, shots in ((ONE_SHOT[0], 1), (FIVE_SHOT, 5)) for ways in (5, 20)),
        *(run_of(name, 5, 1) for name in ONE_SHOT[1:])]
_SOURCE = "arXiv:1703.05175, quoted by oscarknagg/few-shot"
PUBLISHED = (*numbers("protonet", "omniglot", "conv4", _SOURCE, (1, 98.8), (5, 99.7)),
             *numbers("protonet", "omniglot", "conv4", _SOURCE, (1, 96.0), (5, 98.9), ways=20))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED, recipes=RECIPES)
