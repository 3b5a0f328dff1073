"""SimpleShot: plain cross-entropy, the baseline that the others are measured against."""

from __future__ import annotations

from fewshot.training.objectives import OBJECTIVES, CrossEntropy


@OBJECTIVES.register("simpleshot")
class SimpleShotTraining(CrossEntropy):
    """Cross-entropy on the base classes; all else of the paper happens at test time (`simple_shot`).

    Source: Wang et al. 2019, arXiv:1911.04623, eq. 1 and section 4.1; mileyan/simple_shot. 90 epochs of SGD with momentum,
    0.1, batches of 256, divided by 10 at half and three quarters, weight decay 1e-4, random resized crops and flips.

    Neither paper nor code smooths labels: `label_smoothing` does where asked for. Deviations: batches of an epoch have
    equal sizes and none is left out; the weights kept are the best on validation episodes (the paper's "best" model) by
    nearest prototypes of unit-length features.
    """

    defaults = {"epochs": 90, "batch_size": 256, "lr": 0.1, "nesterov": False, "weight_decay": 1e-4, "schedule": "step",
                "milestones": (45, 67), "gamma": 0.1, "augmentation": "resized_crop,flip"}
