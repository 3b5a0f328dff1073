"""MAML on Omniglot (Finn et al. 2017, arXiv:1703.03400), split of Vinyals et al. with rotations, 5-way.

    python experiments/maml_omniglot.py --data-root DATA            # ten minutes: the weights are in experiments/weights
    python experiments/maml_omniglot.py --data-root DATA --train    # about two hours on one CPU core

Data: the two zips of Omniglot. The paper's network (four convolutions of stride 2, 64 channels, the last map averaged) and
settings: one inner step of size 0.4 in training, three in evaluation, 32 episodes a step, Adam 1e-3; second order. With
1-shot episodes of five queries per class, two cosines to 0 over 4,000 steps each, bfloat16 convolutions; the paper trains
for 60,000 steps, and another model for 5 shots. BatchNorm uses the statistics of the batch, as in the paper: the query set
is normalised together, so the numbers are transductive. Test: 10,000 episodes of the 1,692 test classes.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import TrainingPlan, run_experiment, weights_file
from fewshot.training import TrainConfig

DATA = {"protocol": "vinyals", "rotations": True}
PARAMETERS = {"inner_lr": 0.4, "inner_steps": 1, "eval_steps": 3}
NAME = "conv4_omniglot_maml"
TRAINING = TrainConfig(method="maml", parameters=PARAMETERS, ways=5, shots=1, queries=5, episodes_per_step=32, steps=8000,
                       schedule="cosine", cycles=2, precision="bfloat16", validation_queries=15, validation_episodes=300)
PLANS = {NAME: TrainingPlan(TRAINING, "omniglot", data_options=DATA, backbone_options={"strided": True})}
RUNS = [Run(dataset="omniglot", data_options=DATA, backbone_options={"strided": True}, method="maml", parameters=PARAMETERS,
            weights=weights_file(__file__, NAME), ways=5, shots=shots) for shots in (1, 5)]
_SOURCE = "arXiv:1703.03400, quoted by oscarknagg/few-shot"
PUBLISHED = numbers("maml", "omniglot", "conv4", _SOURCE, (1, 98.7), (5, 99.9), **PARAMETERS)

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED, plans=PLANS)
