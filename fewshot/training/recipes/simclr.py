"""SimCLR: contrastive learning of two views, without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_integer, check_number
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits


@OBJECTIVES.register("simclr")
class SimCLR(Objective):
    """NT-Xent (eq. 1): with the 2 B views of a batch, z = g(h) the projected features and (i, j) the views of one image,

        l(i, j) = - log( exp(cos(z_i, z_j) / temperature) / sum over k != i of exp(cos(z_i, z_k) / temperature) ),

    mean over both orders of all pairs. g is linear, BatchNorm, ReLU, linear; h, the backbone's features, is what is used
    afterwards. The accuracy shown is how often a view's partner is the nearest among the B views of the other kind.

    Labels of the base classes do not reach this objective. Choosing weights on validation episodes uses the labels of the
    validation classes: with `validate_every=0` (the default of this recipe) no label is used at all.

    temperature      of the similarities
    projection_dim   of z

    Source: Chen et al. 2020, arXiv:2002.05709, sections 2 and B.9 (its settings for small images: no blur, temperature
    0.5, jitter of strength 0.5); google-research/simclr. Deviations: SGD where the paper has LARS; batches of 256 images,
    where it has up to 8192; the negatives are those of one pass, so `accumulate` changes the loss.
    """

    views = 2
    uses_labels = False
    defaults = {"epochs": 500, "batch_size": 256, "lr": 0.1, "nesterov": False, "weight_decay": 1e-4, "validate_every": 0,
                "augmentation": "resized_crop,color_jitter(0.4,hue=0.1,p=0.8),greyscale(0.2),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, temperature: float = 0.5,
                 projection_dim: int = 128):
        super().__init__()
        self.temperature = check_number("temperature", temperature, 1e-3)
        width = check_integer("projection_dim", projection_dim, 1)
        self.projection = nn.Sequential(nn.Linear(feature_dim, feature_dim, bias=False), nn.BatchNorm1d(feature_dim),
                                        nn.ReLU(), nn.Linear(feature_dim, width))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = F.normalize(head_logits(self.projection, backbone(images)), dim=1)  # [2 B, projection_dim]
        similarity = z @ z.T / self.temperature  # [2 B, 2 B]
        count = len(z) // 2
        partner = torch.arange(2 * count, device=z.device).roll(count)
        others = similarity.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=z.device), -torch.inf)
        return F.cross_entropy(others, partner), similarity[:count, count:]
