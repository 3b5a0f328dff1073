"""EASY: a "Y-shaped" network, trained on classes and rotations, with manifold mixup."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_number
from fewshot.training.config import SupervisedConfig
from fewshot.training.mixing import ManifoldMixup, need_stages, rotated
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits, make_head


@OBJECTIVES.register("easy")
class Easy(Objective):
    """Two passes over a batch, one step:

        lambda CE(y, C(z~)) + (1 - lambda) CE(y', C(z~))  +  1/2 CE(y, C(z^r)) + 1/2 CE(r, R(z^r)),

    z~ the features mixed at a random depth (`ManifoldMixup`, lambda ~ Beta(alpha, alpha)), z^r those of the images whose
    first quarter is left as it is, the others turned by 90, 180 and 270 degrees (r); C and R are the two heads of the Y.
    The accuracy shown is that of C(z^r).

    Source: Bendou et al. 2022, arXiv:2201.09699, section 3.1; ybendou/easy (main.py, the branch `--manifold-mixup 500
    --rotations` of its README): 500 epochs of SGD with Nesterov momentum, 0.1, batches of 128, five cosine cycles that
    begin at 0.9 times the rate before, weight decay 5e-4, resized crops, jitter 0.4, flips.

    Deviations: hidden maps are mixed at the end of a stage, after activation and pooling, where the code mixes before; the
    weights kept are the best of all epochs on 1-shot validation episodes, the code's the best after epoch 450, one for
    each number of shots. Averaging features over crops and networks belongs to the test.
    """

    defaults = {"epochs": 500, "batch_size": 128, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "cosine",
                "cycles": 5, "cycle_gamma": 0.9, "augmentation": "resized_crop,color_jitter(0.4),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, alpha: float = 2.0):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.mixup = ManifoldMixup(check_number("alpha", alpha, 1e-3))
        self.head = make_head(config.head, feature_dim, classes)
        self.rotation_head = nn.Linear(feature_dim, 4)

    def extra_repr(self) -> str:
        return f"alpha={self.mixup.alpha}, label_smoothing={self.label_smoothing}"

    def attach(self, backbone: Backbone) -> None:
        need_stages(backbone)

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mixed, _ = self.mixup.loss(backbone, self.head, images, labels, generator, self.label_smoothing)
        turned, turns = quarters_turned(images)
        features = backbone(turned)
        logits = head_logits(self.head, features)
        classes = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        rotations = F.cross_entropy(head_logits(self.rotation_head, features), turns)
        return mixed + 0.5 * classes + 0.5 * rotations, logits


def quarters_turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """(images, turns [B]): quarter k of the batch turned by k times 90 degrees, what is left over with the last."""
    quarter = len(images) // 4
    sizes = [quarter, quarter, quarter, len(images) - 3 * quarter]
    parts = [rotated(part, k) for k, part in enumerate(images.split(sizes))]
    return torch.cat(parts), torch.arange(4, device=images.device).repeat_interleave(torch.tensor(sizes).to(images.device))
