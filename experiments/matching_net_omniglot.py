"""Matching Networks on Omniglot (Vinyals et al. 2016, arXiv:1606.04080), its split with rotations.

    python experiments/matching_net_omniglot.py --data-root DATA            # a minute: weights are in experiments/weights
    python experiments/matching_net_omniglot.py --data-root DATA --train    # about 20 minutes on one CPU core

Data: the two zips of Omniglot. Conv-4 at 28x28, attention by cosine similarity without full-context embeddings, which the
paper found to make no difference on Omniglot. 60-way 1-shot episodes with 5 queries per class; Adam 1e-3 with a cosine to 0
over 4,000 steps, bfloat16 convolutions. The validation characters choose the weights. Test: 10,000 episodes of the 1,692
test classes.

Differences from the paper, which has no official code: cosines are multiplied by 30 before the softmax (with 1, as in its
formula, the loss stays near that of chance; 30 was better than 10 on the validation classes), and one model answers all
protocols.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import TrainingPlan, run_experiment, weights_file
from fewshot.training import TrainConfig

DATA = {"protocol": "vinyals", "rotations": True}
PARAMETERS = {"scale": 30.0}
NAME = "conv4_omniglot_matching_net"
TRAINING = TrainConfig(method="matching_net", parameters=PARAMETERS, ways=60, shots=1, queries=5, steps=4000,
                       schedule="cosine", precision="bfloat16", validate_every=1000, validation_ways=20,
                       validation_queries=5, validation_episodes=300)
PLANS = {NAME: TrainingPlan(TRAINING, "omniglot", data_options=DATA)}
RUNS = [Run(dataset="omniglot", data_options=DATA, method="matching_net", parameters=PARAMETERS,
            weights=weights_file(__file__, NAME), ways=ways, shots=shots) for ways in (5, 20) for shots in (1, 5)]
_SOURCE = "arXiv:1606.04080, quoted by oscarknagg/few-shot"
PUBLISHED = (*numbers("matching_net", "omniglot", "conv4", _SOURCE, (1, 98.1), (5, 98.9), **PARAMETERS),
             *numbers("matching_net", "omniglot", "conv4", _SOURCE, (1, 93.8), (5, 98.5), ways=20, **PARAMETERS))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED, plans=PLANS)
