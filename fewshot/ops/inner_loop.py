"""Differentiable gradient steps inside an episode, and a network called with other weights than its own.

Tensors that differ between episodes carry a leading axis E ("stacked"). The episodes of a call are independent, so the
gradient of the sum of their losses with respect to stacked weights is the gradient of each episode's own loss. That is
why plain `torch.autograd.grad` serves one episode and many alike, and why only the forward pass needs `torch.func.vmap`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.ops.second_order import twice_differentiable

T = TypeVar("T")
Tensors = dict[str, Tensor]
BATCH_NORM_MODES = ("batch", "running", "per_step")


def gradients(loss: Callable[[Tensors], tuple[Tensor, Tensors]], weights: Tensors, names: Iterable[str],
              second_order: bool) -> tuple[Tensors, Tensors, Tensors]:
    """(weights, gradients by name, extra) of `loss(weights) -> (scalar, extra)` at the weights `names`.

    With `second_order` the gradients can themselves be differentiated. Works while gradients are switched off, too. The
    weights returned are those to go on with; there, and where a weight requires no gradient, they are detached.
    """
    outside = torch.is_grad_enabled()
    with torch.enable_grad():
        weights = dict(weights)
        for name in names:
            kept = outside and weights[name].requires_grad
            # A view is a new node of the graph: a weight made from others (the head of ProtoMAML from the backbone) is
            # then a variable of its own, and the gradients are partial derivatives.
            weights[name] = weights[name].view_as(weights[name]) if kept else weights[name].detach().requires_grad_()
        again = second_order and outside
        with twice_differentiable() if again else contextlib.nullcontext():
            value, extra = loss(weights)
        found = torch.autograd.grad(value, [weights[name] for name in names], create_graph=again, materialize_grads=True)
    return weights, dict(zip(names, found, strict=True)), extra


class BufferReplay:
    """Contexts for `torch.utils.checkpoint`: computed again, `network` begins with the buffers it began with the first time
    (layers such as spectral norm write theirs in every forward pass), and leaves no trace."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.before = {name: value.clone() for name, value in network.named_buffers()}

    def contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """(of the first computation, of each further one)."""
        return contextlib.nullcontext(), self

    def __enter__(self) -> None:
        self.now = dict(self.network.named_buffers())
        # Other tensors, not other values: those that the graph holds stay as they are.
        self._set({name: value.clone() for name, value in self.before.items()})

    def __exit__(self, *_: object) -> None:
        self._set(self.now)

    def _set(self, buffers: Tensors) -> None:
        for name, value in buffers.items():
            owner, _, own = name.rpartition(".")
            self.network.get_submodule(owner)._buffers[own] = value


def call_each(network: nn.Module, stacked: Tensors, shared: Tensors, statistics: Tensors, images: Tensor,
              vectorise: bool) -> tuple[Tensor, Tensors]:
    """The network on images [E, B, ...], episode e with its own weights stacked[name][e]; -> output [E, B, ...].

    shared       weights that are the same for all episodes
    statistics   {name: [E, ...]} buffers which the network updates; they are copied, and the updated ones returned
    vectorise    all episodes in one vmap; otherwise E must be 1

    Names in none of the dictionaries are the network's own. Raises FewshotError, naming the layer, where one cannot be
    vectorised (recurrent ones, and those that write buffers of their own).
    """
    def call(stacked: Tensors, statistics: Tensors, images: Tensor) -> tuple[Tensor, Tensors]:
        # BatchNorm writes into its buffers: into these copies, so that a repeated call (checkpointing) gives the same.
        statistics = {name: value.clone() for name, value in statistics.items()}
        output = functional_call(network, {**shared, **stacked, **statistics}, (images,))
        return output, statistics

    if vectorise:
        return all_at_once(network, call, (stacked, statistics, images),
                           "choose vectorise=False, which takes one after the other")
    stacked, statistics = ({name: value.squeeze(0) for name, value in group.items()} for group in (stacked, statistics))
    images = images.squeeze(0)
    if images.ndim == 4 and images.device.type == "cpu":
        # Pooling and BatchNorm are several times faster so. Images of one channel are always in this layout, but their
        # strides do not say so, and the strides are what a convolution goes by.
        images = images.to(memory_format=torch.channels_last)
    output, statistics = call(stacked, statistics, images)
    return output.unsqueeze(0), {name: value.unsqueeze(0) for name, value in statistics.items()}


def all_at_once(network: nn.Module, call: Callable[..., T], arguments: tuple, remedy: str, in_dims: Any = 0) -> T:
    """`torch.func.vmap` of `call`, which runs `network`, on the `arguments` along the axes `in_dims`.

    Raises FewshotError, naming the layer and the `remedy`, where one cannot be vectorised.
    """
    # "different": dropout must not drop the same units in every episode.
    together = functools.partial(vmap(call, in_dims, randomness="different"), *arguments)
    try:
        return together()
    except RuntimeError as error:
        if re.search("vmap|batching rule", str(error), re.IGNORECASE):
            reason = str(error).partition(". ")[0]
            raise FewshotError(f"{_failing_layer(network, together)} cannot compute all episodes at once ({reason}); "
                               f"{remedy}") from error
        raise


def _failing_layer(network: nn.Module, call: Callable[[], object]) -> str:
    """The innermost layer in which `call`, which failed before, fails."""
    inside: list[str] = []
    names = {module: f"layer {name} ({type(module).__name__})" for name, module in network.named_modules() if name}

    def leave(*_: object) -> None:
        inside.pop()

    hooks = [module.register_forward_pre_hook(lambda module, _: inside.append(names[module])) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        call()
    except RuntimeError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return inside[-1] if inside else type(network).__name__


class BatchNormMode(nn.Module):
    """What the BatchNorm layers of `network` do while its weights adapt to an episode.

    "batch"     normalise with the statistics of the images given, always: the support's in the inner loop, those of
                the query set (which makes a method transductive) when it is classified
    "running"   in training the same, and recorded as usual; in evaluation with the recorded statistics
    "per_step"  as "running", but with statistics, weights and biases of its own for every number of inner steps taken,
                0 .. `steps`; further steps share the last. These weights and biases are then not adapted

    In the last two a layer that was put into evaluation mode, as training does with frozen ones, stays in it while the rest
    trains: recorded statistics, which do not change.

    Source of "per_step": Antoniou et al. 2019, arXiv:1810.09502 (MAML++: BNRS and BNWB);
    AntreasAntoniou/HowToTrainYourMAMLPytorch. Deviations: that code records the statistics but normalises with those of
    the batch in evaluation, too; and the query set after s steps uses the entry s - 1 there, s here.
    Every episode updates the statistics from where they stand; `record` stores the mean over episodes. So the result
    depends neither on the order of the episodes nor on how they are computed.
    """

    def __init__(self, network: nn.Module, mode: str, steps: int):
        super().__init__()
        check_choice(BATCH_NORM_MODES, batch_norm=mode)
        layers = _layers(network)
        missing = [name for name, layer in layers.items() if layer.running_mean is None]
        if missing and mode != "batch":
            raise FewshotError(f"batch_norm={mode!r}, but layer {missing[0]} keeps no running statistics; build it with "
                               "track_running_stats=True or choose batch_norm='batch'")
        self.mode, self.last = mode, steps
        self.uses_batch = mode == "batch" and bool(layers)
        self.statistics_of = [] if mode == "batch" else [f"{name}.{kind}" for name in layers
                                                         for kind in ("running_mean", "running_var")]
        self.weights_of = [f"{name}.{kind}" for name, layer in layers.items() for kind in ("weight", "bias")
                           if getattr(layer, kind) is not None] if mode == "per_step" else []
        if mode == "per_step":
            for name in self.statistics_of:
                self.register_buffer(_key(name), _copies(network.get_buffer(name), steps + 1))
            for name in self.weights_of:
                value = network.get_parameter(name)
                self.register_parameter(_key(name), nn.Parameter(_copies(value, steps + 1), value.requires_grad))

    def statistics(self, network: nn.Module, episodes: int) -> Tensors:
        """The statistics an episode starts from, stacked [E, C] (or [E, steps + 1, C]); empty where none change."""
        if not self.training:
            return {}
        recording = [name for name, layer in _layers(network).items() if _records(layer)]
        return {name: value.expand(episodes, *value.shape) for name, value in self._stored(network).items()
                if name.rpartition(".")[0] in recording}

    def record(self, network: nn.Module, statistics: Tensors) -> None:
        """Store the mean over episodes of the updated statistics [E, ...], and count the meta-batch in every mode:
        DropBlock's warm-up goes by this counter."""
        if self.training:
            stored = self._stored(network)
            for name, value in statistics.items():
                stored[name].copy_(value.detach().mean(0))
            for layer in _layers(network).values():
                if layer.num_batches_tracked is not None and _records(layer):
                    layer.num_batches_tracked.add_(1)

    def call(self, network: nn.Module, stacked: Tensors, statistics: Tensors, images: Tensor, step: int,
             vectorise: bool) -> tuple[Tensor, Tensors]:
        """`call_each` after `step` inner steps, with the layers in this mode."""
        layers, shared = _layers(network), {}
        if self.training:
            # BatchNorm that tracks counts its calls in place: in copies, `record` counts the meta-batches. Either way the
            # network sees the number of this one.
            counted = int(self.mode == "batch")
            shared = {f"{name}.num_batches_tracked": layer.num_batches_tracked + counted for name, layer in layers.items()
                      if layer.num_batches_tracked is not None and _records(layer)}
        of_batch = [self.mode == "batch" or (self.training and _records(layer)) for layer in layers.values()]
        with _flags(layers.values(), of_batch, tracking=self.mode != "batch"):
            if self.mode != "per_step":
                return call_each(network, stacked, shared, statistics, images, vectorise)
            step = min(step, self.last)
            shared |= {name: getattr(self, _key(name))[step] for name in self.weights_of}
            shared |= {name: value[step] for name, value in self._stored(network).items() if name not in statistics}
            now = {name: value[:, step] for name, value in statistics.items()}
            output, now = call_each(network, stacked, shared, now, images, vectorise)
            at = torch.tensor([step], device=images.device)
            return output, {name: statistics[name].index_copy(1, at, value.unsqueeze(1)) for name, value in now.items()}

    def _stored(self, network: nn.Module) -> Tensors:
        if self.mode == "per_step":
            return {name: getattr(self, _key(name)) for name in self.statistics_of}
        return {name: network.get_buffer(name) for name in self.statistics_of}


def _layers(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}


def _records(layer: _BatchNorm) -> bool:
    """Whether a layer of a network in training mode is in it, too."""
    return layer.training and (layer.track_running_stats or layer.running_mean is None)


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of parameters must not hold dots


def _copies(value: Tensor, count: int) -> Tensor:
    return value.detach().expand(count, *value.shape).clone()


@contextlib.contextmanager
def _flags(layers: Iterable[_BatchNorm], training: Iterable[bool], tracking: bool) -> Iterator[None]:
    """BatchNorm layers in the given state. A training layer that does not track leaves its running statistics alone."""
    layers = list(layers)
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer, trains in zip(layers, training, strict=True):
            layer.training, layer.track_running_stats = trains, tracking
        yield
    finally:
        for layer, (was_training, was_tracking) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = was_training, was_tracking
