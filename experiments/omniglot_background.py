"""ProtoNet trained on Omniglot's background alphabets, evaluated on its evaluation alphabets.

    python experiments/omniglot_background.py --data-root DATA            # a minute: the weights are in experiments/weights
    python experiments/omniglot_background.py --data-root DATA --train    # about 15 minutes on two CPU cores

Snell et al. 2017 (arXiv:1703.05175) use the split of Vinyals et al. 2016, which mixes alphabets; here all alphabets of the
test are new, which is harder (Lake et al. 2015's split). Training: 792 characters of 25 background alphabets with their
rotations as further classes; the other 5 background alphabets choose the weights. Test: 659 characters of 20 alphabets,
without rotations. Conv-4, 28x28, Adam 1e-3 with a cosine to 0, 20-way 1-shot episodes with 5 queries per class.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.running import TrainingPlan, run_experiment, weights_file
from fewshot.training import TrainConfig

NAME = "conv4_omniglot_background"
WEIGHTS = weights_file(__file__, NAME)
TRAINING = TrainConfig(method="protonet", ways=20, shots=1, queries=5, steps=8000, schedule="cosine", validate_every=500,
                       validation_ways=20, validation_queries=5, validation_episodes=300)
PROTOCOLS = ((5, 1), (5, 5), (20, 1), (20, 5))
SUBJECTS = (("pixels", None, "protonet"), ("conv4", None, "protonet"), ("conv4", WEIGHTS, "protonet"),
            ("conv4", WEIGHTS, "nearest_neighbour"), ("conv4", WEIGHTS, "simple_shot"),
            ("conv4", WEIGHTS, "logistic_regression"), ("conv4", WEIGHTS, "soft_kmeans"), ("conv4", WEIGHTS, "pt_map"))
RUNS = [Run(dataset="omniglot", backbone=backbone, weights=weights, method=method, ways=ways, shots=shots)
        for backbone, weights, method in SUBJECTS for ways, shots in PROTOCOLS]
PLANS = {NAME: TrainingPlan(TRAINING, "omniglot", base_options={"rotations": True})}

if __name__ == "__main__":
    run_experiment(__file__, RUNS, plans=PLANS)
