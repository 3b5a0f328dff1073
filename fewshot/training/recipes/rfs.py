"""RFS: cross-entropy, then self-distillation into fresh networks of the same kind."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone, create_backbone, load_weights
from fewshot.backbones.weights import describe_weights, read_method
from fewshot.core.checked import check_number
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits, make_head


@OBJECTIVES.register("rfs")
class RFS(Objective):
    """Generation 0 minimises the cross-entropy (eq. 4), generation k (eqs. 6 and 7)

        alpha CE(y, f_k(x)) + beta T^2 KL(softmax(f_k-1(x) / T) || softmax(f_k(x) / T)),

    where f_k-1 is the frozen network of the generation before, in evaluation mode, on the same augmented image.

    teacher       weights file that a run of a recipe with a head left behind ("" for generation 0). Its content, not its
                  place, identifies the run; it is no part of the weights or checkpoints that this run writes
    alpha, beta   weights of the two losses
    temperature   T

    Source: Tian et al. 2020, arXiv:2003.11539, section 3.2; WangYueFt/rfs: 100 epochs of SGD with momentum, 0.05, batches
    of 64, divided by 10 after 60 and 80, weight decay 5e-4, crops padded by 8 pixels, jitter 0.4, flips; T = 4 and
    alpha = beta = 0.5 in the command of its script (run.sh); T^2 is in the code and not in the paper. Deviation: the code
    keeps the last weights, here those best on validation episodes are kept (`validate_every=0` for the last).
    """

    defaults = {"epochs": 100, "batch_size": 64, "lr": 0.05, "nesterov": False, "weight_decay": 5e-4, "schedule": "step",
                "milestones": (60, 80), "gamma": 0.1, "augmentation": "crop(8),color_jitter(0.4),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, teacher: str | Path = "",
                 alpha: float = 0.5, beta: float = 0.5, temperature: float = 4.0):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.alpha, self.beta = check_number("alpha", alpha, 0), check_number("beta", beta, 0)
        self.temperature = check_number("temperature", temperature, 1e-3)
        self.head = make_head(config.head, feature_dim, classes)
        # In a tuple, so that neither checkpoints nor the optimiser nor `train()` know of it.
        self._teacher = _read_teacher(Path(teacher), config.head, classes) if str(teacher) else None

    def extra_repr(self) -> str:
        generation = "no teacher"
        if self._teacher is not None:
            sha256 = state_sha256({**self._teacher[0].state_dict(), **self._teacher[1].state_dict(prefix="head.")})
            generation = f"teacher={sha256}, alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"
        return f"{generation}, label_smoothing={self.label_smoothing}"

    def attach(self, backbone: Backbone) -> None:
        if self._teacher is not None and self._teacher[0].transform != backbone.transform:
            raise FewshotError(f"the teacher prepares images by {self._teacher[0].transform}, the backbone by "
                               f"{backbone.transform}; create the backbone like the teacher's")

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = head_logits(self.head, backbone(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self._teacher is None:
            return loss, logits
        network, head = (module.to(images.device) for module in self._teacher)
        with torch.no_grad():
            target = (head_logits(head, network(images)) / self.temperature).log_softmax(1)
        student = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(student, target, log_target=True, reduction="batchmean")
        return self.alpha * loss + self.beta * self.temperature**2 * divergence, logits


def _read_teacher(path: Path, kind: str, classes: int) -> tuple[Backbone, nn.Module]:
    """(backbone, head) of the weights file of a supervised run, frozen."""
    described = describe_weights(path)
    backbone = create_backbone(described["backbone"], **described["options"], batch_norm=described["batch_norm"])
    load_weights(backbone, path)
    stored = read_method(path)
    state = {} if stored is None else {name.removeprefix("head."): value for name, value in stored[0].items()
                                       if name.startswith("head.")}
    head = make_head(kind, backbone.feature_dim, classes)
    if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in head.state_dict().items()}:
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        raise FewshotError(f"teacher {path} has the head {shapes or 'of no classes'}, which is not a {kind} one of "
                           f"{classes} classes; give the weights of a supervised run on these classes with head={kind!r}")
    head.load_state_dict(state)
    return backbone.requires_grad_(False).eval(), head.requires_grad_(False)
