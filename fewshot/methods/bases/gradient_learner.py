"""What gradient-based learners share: hyper-parameters, and a network that adapts to the support of each episode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewshot.core.checked import check_at_least, check_choice, check_number
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import Method, feature_dim_of
from fewshot.ops.inner_loop import BatchNormMode, BufferReplay, Tensors, gradients
from fewshot.ops.second_order import CheapSecondOrder, differentiable, layer_without_second_derivative

HEAD = ("head.weight", "head.bias")


class GradientLearner(nn.Module, Method):
    """A backbone and a linear head that take gradient steps on the support of an episode before they answer its
    queries. Made by `create_method(name, ...).with_backbone(backbone, ways)`; its weights are the meta-learned ones.

    settings   the hyper-parameters, a GradientMethod
    backbone   images [B, C, H, W] -> features [B, D]; held, not copied
    head       nn.Linear(D, ways), None for methods that make it from the support
    ways       of the episodes it takes, None for any number
    setting    "transductive" where BatchNorm sees the other queries, else "inductive". It describes evaluation mode

    Call it on episodes of images that went through the backbone's transform. In training mode the answer can be
    differentiated with respect to the weights; under `torch.no_grad` the inner loop still finds its gradients, and
    nothing is kept. Raises FewshotError for episodes with another number of ways than the head.
    """

    inputs = "images"
    assumes: tuple[str, ...] = ()

    def __init__(self, settings: GradientMethod, backbone: nn.Module, ways: int, feature_dim: int, seed: int):
        super().__init__()
        self.settings, self.backbone = settings, backbone
        self.ways = ways if settings.has_head else None
        self.paper, self.assumes = settings.paper, settings.assumes
        weight = next(backbone.parameters(), torch.empty(0))
        with isolated_rng(seed):
            self.head = nn.Linear(feature_dim, ways).to(weight.device, weight.dtype) if settings.has_head else None
        self.norms = BatchNormMode(backbone, settings.batch_norm, settings.inner_steps)
        self.setting = "transductive" if self.norms.uses_batch else "inductive"
        self.vectorise = settings.vectorise
        self.differentiable = settings.first_order  # whether the inner gradients are known to be, where they must be
        # Chosen now: whether a weight is adapted must not depend on what is frozen at the time of a call.
        free = [f"backbone.{name}" for name, value in backbone.named_parameters()
                if value.requires_grad and name not in self.norms.weights_of]
        self.adapted = [name for name in (*free, *HEAD) if settings.adapts(name)]
        self.body_adapts = any(name not in HEAD for name in self.adapted)

    # -- answering ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Inner steps in the present mode."""
        s = self.settings
        return s.inner_steps if self.training or s.eval_steps is None else s.eval_steps

    def forward(self, episodes: Episodes) -> Tensor:
        """Logits [E, Q, N] after the inner loop."""
        return self.trajectory(episodes, {self.steps})[-1]

    def trajectory(self, episodes: Episodes, at: set[int] | None = None) -> Tensor:
        """Logits [T, E, Q, N] after the numbers of inner steps in `at`, ascending; by default after 0, 1, .. all."""
        return self._run(episodes, set(range(self.steps + 1)) if at is None else at)[0]

    def loss(self, episodes: Episodes, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean loss that training minimises, logits [E, Q, N]): here the query cross-entropy after the inner loop."""
        logits = self(episodes)
        return mean_cross_entropy(logits, query_labels), logits

    @property
    def plain_loss(self) -> bool:
        """Whether `loss` is the cross-entropy of the queries after the last step and nothing else."""
        return True

    def adapt(self, episodes: Episodes) -> tuple[Tensor, Tensors]:
        """Logits [E, Q, N] after the inner loop, and the adapted weights {name: [E, ...]}."""
        logits, weights = self._run(episodes, {self.steps})
        return logits[-1], weights

    def on(self, network: nn.Module) -> GradientLearner:
        """This learner, not a copy of its weights, with `network` in place of the backbone. The network must have weights
        of the same names."""
        other = copy.copy(self)
        other._modules = {**self._modules, "backbone": network}
        return other

    def features(self, images: Tensor, weights: Tensors) -> Tensor:
        """Features [E, B, D] of transformed images [E, B, C, H, W] with the adapted weights that `adapt` returned;
        records no statistics."""
        size = len(images) if self._vectorised(images.device) else 1
        statistics = self.norms.statistics(self.backbone, len(images))
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return torch.cat([self._embed(_rows(weights, part), _rows(statistics, part), images[part], self.steps)[0]
                          for part in parts])

    def _run(self, episodes: Episodes, at: set[int]) -> tuple[Tensor, Tensors]:
        """Logits [T, E, Q, N] and the adapted weights [E, ...]."""
        self._check(episodes)
        differentiable = torch.is_grad_enabled()
        # Nothing can be differentiated in inference mode, not even for the inner loop.
        with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
            parts = [self._adapt(part, at) for part in self._chunks(episodes)]
            logits = torch.cat([torch.stack(part[0]) for part in parts], dim=1)
            weights, statistics = _joined([part[1] for part in parts]), _joined([part[2] for part in parts])
            self.norms.record(self.backbone, statistics)
        return logits, weights

    def _adapt(self, e: Episodes, at: set[int]) -> tuple[list[Tensor], Tensors, Tensors]:
        """Logits [E, Q, N] at every number of steps in `at`, adapted weights and statistics of one chunk."""
        statistics = self.norms.statistics(self.backbone, len(e))
        if not self.body_adapts:  # the features stay the same during the inner loop: computed once
            support, statistics = self._embed({}, statistics, e.support, 0)
            query, statistics = self._embed({}, statistics, e.query, 0)
            e = Episodes.trusted(support=support, support_labels=e.support_labels, query=query, ways=e.ways)
        return self._loop(e, statistics, at)

    # -- what methods replace ------------------------------------------------------------------------------------------

    def _loop(self, e: Episodes, statistics: Tensors, at: set[int]) -> tuple[list[Tensor], Tensors, Tensors]:
        """What `_adapt` returns, of images, or of features where the body does not adapt."""
        weights, statistics = self._initial(e, statistics)
        memory: Tensors = {}
        outputs = []
        for step in range(max(at) + 1):
            if step in at:
                logits, statistics = self._logits(weights, statistics, e.query, step)
                outputs.append(logits)
            if step < max(at):
                arguments = (step, weights, statistics, memory, e.support, e.support_labels)
                if self.settings.checkpoint and torch.is_grad_enabled():
                    weights, statistics, memory = checkpoint(self._step, *arguments, use_reentrant=False,
                                                             context_fn=BufferReplay(self.backbone).contexts)
                else:
                    weights, statistics, memory = self._step(*arguments)
        return outputs, {name: weights[name] for name in self.adapted}, statistics

    def _initial(self, e: Episodes, statistics: Tensors) -> tuple[Tensors, Tensors]:
        """Stacked weights [E, ...] before the first step, and statistics."""
        weights = self._weights()
        return {name: value.expand(len(e), *value.shape) for name, value in weights.items()
                if name in self.adapted or name in HEAD}, statistics

    def _step(self, step: int, weights: Tensors, statistics: Tensors, memory: Tensors, support: Tensor,
              labels: Tensor) -> tuple[Tensors, Tensors, Tensors]:
        """(weights, statistics, memory) after one inner step: here gradient descent, which has no memory."""
        weights, found, statistics = self._gradients(step, weights, statistics, support, labels)
        moved = {name: weights[name] - self._rate(name, step) * gradient for name, gradient in found.items()}
        return {**weights, **moved}, statistics, memory

    def _rate(self, name: str, step: int) -> float | Tensor:
        """Learning rate of the weight `name` at an inner step."""
        return self.settings.inner_lr

    # -- parts -------------------------------------------------------------------------------------------------------

    def _gradients(self, step: int, weights: Tensors, statistics: Tensors, support: Tensor,
                   labels: Tensor) -> tuple[Tensors, Tensors, Tensors]:
        def loss(weights: Tensors) -> tuple[Tensor, Tensors]:
            return self._support_loss(step, weights, statistics, support, labels)

        weights, found, updated = gradients(loss, weights, self.adapted, second_order=not self.settings.first_order)
        if self.training and not self.differentiable and any(gradient.requires_grad for gradient in found.values()):
            if not differentiable(found.values()):
                layer = layer_without_second_derivative(self.backbone, support[0])
                raise FewshotError(f"{f'layer {layer}' if layer else 'a layer'} of the backbone has no second derivative, "
                                   "which first_order=False needs; choose first_order=True, or another backbone")
            self.differentiable = True
        return weights, found, updated

    def _support_loss(self, step: int, weights: Tensors, statistics: Tensors, support: Tensor,
                      labels: Tensor) -> tuple[Tensor, Tensors]:
        """(sum of the episodes' mean losses, statistics)."""
        logits, statistics = self._logits(weights, statistics, support, step)
        return mean_cross_entropy(logits, labels) * len(labels), statistics

    def _logits(self, weights: Tensors, statistics: Tensors, x: Tensor, step: int) -> tuple[Tensor, Tensors]:
        """Logits [E, B, N] of what `_features` takes."""
        z, statistics = self._features(weights, statistics, x, step)
        return torch.baddbmm(weights[HEAD[1]].unsqueeze(1), z, weights[HEAD[0]].transpose(1, 2)), statistics

    def _features(self, weights: Tensors, statistics: Tensors, x: Tensor, step: int) -> tuple[Tensor, Tensors]:
        """Features [E, B, D] of x: images, or the features themselves where they were computed once."""
        return self._embed(weights, statistics, x, step) if self.body_adapts else (x, statistics)

    def _embed(self, weights: Tensors, statistics: Tensors, images: Tensor, step: int) -> tuple[Tensor, Tensors]:
        body = {name.removeprefix("backbone."): value for name, value in weights.items() if name not in HEAD}
        vectorise = self._vectorised(images.device)
        with CheapSecondOrder() if self._cheap(images.device) else contextlib.nullcontext():
            features, statistics = self.norms.call(self.backbone, body, statistics, images, step, vectorise)
        if features.ndim != 3:
            raise FewshotError(f"the backbone turns images into {tuple(features.shape[2:])}; the head needs one "
                               "feature vector [D] per image: add nn.Flatten()")
        return features, statistics

    def _weights(self) -> Tensors:
        weights: Tensors = {f"backbone.{name}": value for name, value in self.backbone.named_parameters()}
        return weights if self.head is None else {**weights, **dict(zip(HEAD, self.head.parameters(), strict=False))}

    def _vectorised(self, device: torch.device) -> bool:
        return device.type != "cpu" if self.vectorise == "auto" else bool(self.vectorise)

    def _cheap(self, device: torch.device) -> bool:
        # First derivatives are PyTorch's own either way, and quicker without a detour through Python.
        second_order = self.training and self.body_adapts and not self.settings.first_order
        return second_order and device.type == "cpu" and not self._vectorised(device)

    def _chunks(self, episodes: Episodes) -> Iterator[Episodes]:
        size = (self.settings.chunk or len(episodes)) if self._vectorised(episodes.support.device) else 1
        for start in range(0, len(episodes), size):
            e = episodes[start : start + size]
            if e.support.is_inference():  # copies are ordinary tensors again
                e = Episodes.trusted(support=e.support.clone(), support_labels=e.support_labels.clone(),
                                     query=e.query.clone(), ways=e.ways)
            yield e

    def _check(self, episodes: Episodes) -> None:
        if self.ways not in (None, episodes.ways):
            raise FewshotError(f"episodes of ways={episodes.ways} for a head of {self.ways} outputs; use episodes of "
                               f"{self.ways} ways, make the learner with with_backbone(backbone, ways="
                               f"{episodes.ways}), or choose proto_maml, which makes its head from the support")


@dataclass(frozen=True, eq=False)
class GradientMethod(Method):
    """Base of the gradient-based methods: hyper-parameters alone. `with_backbone` makes the learner that has weights.

    inner_lr      learning rate of the inner loop
    inner_steps   inner steps in training, eval_steps those in evaluation (None: the same)
    first_order   take the inner gradients as constants in the outer derivative
    batch_norm    "batch", "running" or "per_step", see `BatchNormMode`; "batch" makes the learner transductive
    vectorise     True: all episodes at once (torch.func.vmap); False: one after the other; "auto": the faster for the
                  device, which is one after the other on CPU
    chunk         at most so many episodes at once, None for all; bounds the memory of evaluation. In training the graph
                  of every chunk lives until the backward pass: split the meta-batch there (TrainConfig.accumulate)
    checkpoint    keep only the weights of each inner step for the backward pass and compute the rest again

    Raises FewshotError for values out of range.
    """

    inputs = "images"
    needs_backbone = True
    setting = "transductive"  # of the default, batch statistics; an instance carries its own
    has_head: ClassVar[bool] = True
    batch_norm_modes: ClassVar[tuple[str, ...]] = ("batch", "running")
    learner: ClassVar[type[GradientLearner]] = GradientLearner

    inner_lr: float = 0.01
    inner_steps: int = 5
    eval_steps: int | None = None
    first_order: bool = False
    batch_norm: str = "batch"
    vectorise: bool | str = "auto"
    chunk: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_number("inner_lr", self.inner_lr, 0)
        check_at_least(0, inner_steps=self.inner_steps, eval_steps=self.eval_steps)
        check_at_least(1, chunk=self.chunk)
        check_choice(self.batch_norm_modes, batch_norm=self.batch_norm)
        if self.vectorise not in (True, False, "auto"):
            raise FewshotError(f"vectorise={self.vectorise!r}; choose True, False or 'auto'")
        object.__setattr__(self, "setting", "transductive" if self.batch_norm == "batch" else "inductive")

    def adapts(self, name: str) -> bool:
        """Whether the inner loop changes the weight `name`, "backbone. ..." or "head. ..."."""
        return True

    def with_backbone(self, backbone: nn.Module, ways: int, *, feature_dim: int | None = None,
                      seed: int = 0) -> GradientLearner:
        """The learner on `backbone` with a fresh head for `ways` classes, whose random weights come from `seed`.

        feature_dim   D; needed where the backbone has no attribute of that name

        Of a backbone that `torch.compile` wrapped it is the network inside: compiled calls have no second derivative.
        """
        backbone = plain(backbone)
        return self.learner(self, backbone, ways, feature_dim_of(backbone, feature_dim), seed)

    def __call__(self, episodes: Episodes) -> Tensor:
        raise self.without_network()


def _rows(tensors: Tensors, rows: slice) -> Tensors:
    return {name: value[rows] for name, value in tensors.items()}


def _joined(parts: list[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all items of logits [E, B, N] and labels [E, B]; half-precision logits (autocast) are widened first."""
    logits = logits if logits.dtype.itemsize > 2 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
