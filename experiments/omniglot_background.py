"""ProtoNet trained on Omniglot's background alphabets, evaluated on its evaluation alphabets.

    python experiments/omniglot_background.py --data-root DATA            # a minute: the weights are in experiments/weights
    python experiments/omniglot_background.py --data-root DATA --train    # about 15 minutes on two CPU cores

Snell et al. 2017 (arXiv:1703.05175) use the split of Vinyals et al. 2016, which mixes alphabets; here all alphabets of the
test are new, which is harder (Lake et al. 2015's split). Training: 792 characters of 25 background alphabets with their
rotations as further classes; the other 5 background alphabets choose the weights. Test: 659 characters of 20 alphabets,
without rotations. Conv-4, 28x28, Adam 1e-3 with a cosine to 0, 20-way 1-shot episodes with 5 queries per class.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fewshot.backbones import create_backbone
from fewshot.datasets import load_dataset
from fewshot.experiment import run_experiment
from fewshot.run import Run
from fewshot.training import TrainConfig, train

WEIGHTS = Path(__file__).parent / "weights" / "conv4_omniglot_background.safetensors"
TRAINING = TrainConfig(method="protonet", ways=20, shots=1, queries=5, steps=8000, schedule="cosine", validate_every=500,
                       validation_ways=20, validation_queries=5, validation_episodes=300)
PROTOCOLS = ((5, 1), (5, 5), (20, 1), (20, 5))
SUBJECTS = (("pixels", None, "protonet"), ("conv4", None, "protonet"), ("conv4", str(WEIGHTS), "protonet"),
            ("conv4", str(WEIGHTS), "nearest_neighbour"), ("conv4", str(WEIGHTS), "simple_shot"),
            ("conv4", str(WEIGHTS), "logistic_regression"), ("conv4", str(WEIGHTS), "soft_kmeans"),
            ("conv4", str(WEIGHTS), "pt_map"))
RUNS = [Run(dataset="omniglot", backbone=backbone, weights=weights, method=method, ways=ways, shots=shots)
        for backbone, weights, method in SUBJECTS for ways, shots in PROTOCOLS]


def train_weights(root: str | None, out: Path = Path("runs/omniglot_background")) -> None:
    """Train, and keep the weights beside this file."""
    base = load_dataset("omniglot", "train", root=root, rotations=True)
    validation = load_dataset("omniglot", "val", root=root)
    result = train(TRAINING, base, validation, create_backbone("conv4", channels=1, image_size=28), out=out)
    print(result)
    shutil.copy(result.weights, WEIGHTS)


if __name__ == "__main__":
    if "--train" in sys.argv:
        sys.argv.remove("--train")
        train_weights(sys.argv[sys.argv.index("--data-root") + 1] if "--data-root" in sys.argv else None)
    run_experiment(__file__, RUNS)
