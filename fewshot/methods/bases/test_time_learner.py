"""What methods share that train a backbone, or adapters of it, on the support of each test episode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.checked import check_at_least, check_choice, check_number
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import Method
from fewshot.ops.frozen_prefix import Images, ReplayedNetwork, Tensors
from fewshot.ops.heads import CosineHead, LinearHead, PrototypeHead
from fewshot.ops.network_blocks import NAMED, block_numbers, blocks_text, chosen_weights

Head = PrototypeHead | LinearHead | CosineHead
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9), "adam": torch.optim.Adam,
    "adadelta": torch.optim.Adadelta}
SCHEDULES = ("constant", "cosine")


class TestTimeLearner(nn.Module, Method):
    """A backbone that is trained on the support of an episode before it answers the queries. Made by
    `create_method(name, ...).with_backbone(backbone, ways)`; takes episodes of any number of ways.

    settings   the hyper-parameters, a FineTuning
    backbone   images [B, C, H, W] -> features [B, D]; held, never changed: every episode works on values of its own
    changing   names of the backbone's weights that are adapted
    setting    "transductive" where BatchNorm sees the other queries, else "inductive"

    Call it on episodes of images that went through the backbone's transform. Episodes are worked on one after the other.
    What lies below the lowest adapted layer is computed once an episode. The network runs in evaluation mode, whatever
    its own is, and the answer cannot be differentiated: such a method is applied to weights, not trained.

    Raises FewshotError where the loss is no longer finite.
    """

    __test__ = False  # the name looks like a test case to pytest
    inputs = "images"
    assumes: tuple[str, ...] = ()

    def __init__(self, settings: FineTuning, backbone: nn.Module):
        super().__init__()
        self.settings, self.backbone = settings, backbone
        self.paper, self.assumes = settings.paper, settings.assumes
        # What moves at a rate of 0 does not move: then it need not be computed again either.
        self.changing = settings.adapts(backbone) if settings.lr > 0 and settings.steps > 0 else []
        uses_batch = settings.batch_norm == "batch" and any(isinstance(m, _BatchNorm) for m in backbone.modules())
        self.setting = "transductive" if uses_batch else "inductive"
        self._replayed: tuple[tuple, ReplayedNetwork] | None = None

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] of the adapted network."""
        if episodes.support.ndim != 5 or not episodes.support.is_floating_point():
            raise FewshotError(f"{type(self.settings).__name__} takes transformed images [E, S, C, H, W]; support is "
                               f"{episodes.support.dtype} {tuple(episodes.support.shape)}: apply backbone.transform first")
        # Nothing can be differentiated in inference mode, not even to adapt.
        with torch.inference_mode(False):
            network, answers = self._network(), []
            for parts in zip(episodes.support.split(1), episodes.support_labels.split(1), episodes.query.split(1),
                             strict=True):
                support, labels, query = (x.clone() if x.is_inference() else x for x in parts)
                answers.append(self._answer(network, support, labels, query, episodes.ways))
            return torch.cat(answers)

    def _answer(self, network: ReplayedNetwork, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
        s, head = self.settings, self.settings.classifier
        frozen: Tensors = {name: value for name, value in network.whole.named_parameters() if name in self.changing}
        with torch.no_grad():
            images = network.prepare(support[0])
            features = _features(network, {}, images)
            body, top = s.start(frozen) if self.changing else {}, head.start(features, labels, ways)
        body, top = ({name: value.clone().requires_grad_() for name, value in group.items()} for group in (body, top))
        groups = [{"params": list(values.values()), "lr": rate} for values, rate in ((body, s.lr), (top, s.rate_of_head))
                  if values and rate > 0]
        if groups:
            with torch.enable_grad():
                self._train(network, groups, frozen, body, top, images, labels, ways)
        with torch.no_grad():
            weights = s.adapted(body, frozen) if self.changing else {}
            if head.reads_support and self.changing:
                features = _features(network, weights, images)
            z = _features(network, weights, network.prepare(query[0]))
            return head.logits(top, z, features, labels, ways)

    def _train(self, network: ReplayedNetwork, groups: list[dict], frozen: Tensors, body: Tensors, top: Tensors,
               images: Images, labels: Tensor, ways: int) -> None:
        """Move the leaves `body` and `top` in place."""
        s, head = self.settings, self.settings.classifier
        optimiser = OPTIMISERS[s.optimiser](groups)
        for step in range(s.steps):
            if s.schedule == "cosine":
                for group in optimiser.param_groups:
                    group.setdefault("first_lr", group["lr"])
                    group["lr"] = group["first_lr"] * (1 + math.cos(math.pi * step / s.steps)) / 2
            weights = s.adapted(body, frozen) if self.changing else {}
            rows = s.rows(step, labels.shape[1])
            changed = s.augmented(step, images.pixels)
            seen = images if changed is images.pixels else network.prepare(changed)
            z = network(weights, seen if rows is None else seen[rows]).unsqueeze(0)
            all_seen = seen is images and rows is None
            support = z if all_seen or not head.reads_support else network(weights, images).unsqueeze(0)
            logits = head.logits(top, z, support, labels, ways)
            loss = F.cross_entropy(logits[0], labels[0] if rows is None else labels[0, rows])
            if not loss.isfinite():
                raise FewshotError(f"the loss of {type(s).__name__} is {loss.item()} after {step} steps with lr={s.lr}; "
                                   "lower the learning rate")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def _network(self) -> ReplayedNetwork:
        """The network to replay; made again when the backbone's tensors are no longer the same memory."""
        state = tuple(value.data_ptr() for value in (*self.backbone.parameters(), *self.backbone.buffers()))
        if self._replayed is None or self._replayed[0] != state:
            self._replayed = state, ReplayedNetwork(self.backbone, self.changing, self.settings.batch_norm)
        return self._replayed[1]


def _features(network: ReplayedNetwork, weights: Tensors, images: Images) -> Tensor:
    """[1, B, D], without gradients."""
    parts = images.parts() if network.batch_norm == "running" else [images]
    features = torch.cat([network(weights, part) for part in parts]).unsqueeze(0)
    if features.ndim != 3:
        raise FewshotError(f"the backbone turns images into {tuple(features.shape[2:])}; a classifier needs one feature "
                           "vector [D] per image: add nn.Flatten()")
    return features


@dataclass(frozen=True, eq=False)
class FineTuning(Method):
    """Base of these methods: hyper-parameters alone. `with_backbone` makes the learner.

    steps        gradient steps on the support; 0 leaves the features as they are
    lr           learning rate of what is adapted in the backbone; 0 leaves it as it is
    optimiser    "sgd" (momentum 0.9), "adam" or "adadelta", with PyTorch's other defaults
    schedule     of the learning rates: "constant", or "cosine" to 0
    batch_norm   "running": normalise with the recorded statistics. "batch": with those of the support while adapting, and
                 of the query set when it is classified, which makes the method transductive

    The loss is the cross-entropy of the support. Raises FewshotError for values out of range.
    """

    inputs = "images"
    needs_backbone = True
    batch_norm_modes: ClassVar[tuple[str, ...]] = ("running", "batch")

    steps: int = 40
    lr: float = 1e-3
    optimiser: str = "adam"
    schedule: str = "constant"
    batch_norm: str = "running"

    def __post_init__(self) -> None:
        check_at_least(0, steps=self.steps)
        for name in ("lr", "head_lr"):
            if hasattr(self, name):
                check_number(name, getattr(self, name), 0)
        check_choice(OPTIMISERS, optimiser=self.optimiser)
        check_choice(SCHEDULES, schedule=self.schedule)
        check_choice(self.batch_norm_modes, batch_norm=self.batch_norm)
        if hasattr(self, "blocks"):
            object.__setattr__(self, "blocks", blocks_text(self.blocks))
            if self.blocks not in NAMED:
                block_numbers(self.blocks)
        object.__setattr__(self, "setting", "transductive" if self.batch_norm == "batch" else "inductive")

    # -- what methods replace ------------------------------------------------------------------------------------------

    def adapts(self, network: nn.Module) -> list[str]:
        """Names of the weights of `network` that change; raises FewshotError where it has none of the kind."""
        return chosen_weights(network, getattr(self, "blocks", "all"))

    def start(self, frozen: Tensors) -> Tensors:
        """What is learned for these weights, by any names; the weights themselves by default."""
        return frozen

    def adapted(self, values: Tensors, frozen: Tensors) -> Tensors:
        """The weights by name, made of the learned values."""
        return values

    @property
    def classifier(self) -> Head:
        """What is put on the features."""
        return PrototypeHead(getattr(self, "scale", PrototypeHead.scale))

    @property
    def rate_of_head(self) -> float:
        """Learning rate of what the classifier learns."""
        return getattr(self, "head_lr", 0.0)

    def rows(self, step: int, shots: int) -> Tensor | None:
        """Which support images [B] take part in a step; None: all."""
        return None

    def augmented(self, step: int, pixels: Tensor) -> Tensor:
        """The support images [S, C, H, W] as they are classified in a step."""
        return pixels

    # ------------------------------------------------------------------------------------------------------------------

    def with_backbone(self, backbone: nn.Module, ways: int, *, seed: int = 0) -> TestTimeLearner:
        """The learner on `backbone`. It has no weights of its own: `ways` and `seed` change nothing."""
        return TestTimeLearner(self, plain(backbone))

    def __call__(self, episodes: Episodes) -> Tensor:
        raise self.without_network()


def check_found(found: list[str], blocks: str | int | tuple, what: str, remedy: str) -> list[str]:
    """`found`, or FewshotError where it is empty although blocks were asked for."""
    if not found and blocks != "none":
        raise FewshotError(f"this network has no {what} in blocks={blocks!r}; {remedy}")
    return found
