"""A network called with other values for some of its weights, where everything before those is computed once.

Adapting the last layers to an episode takes many passes over the same few images. The layers below them give the same
outputs each time: these are kept and given again ("replayed").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.errors import FewshotError

Tensors = dict[str, Tensor]
_IMAGES = 64  # computed at once without gradients: bounds the memory, as in `fewshot.embed`


def shared_copy(network: nn.Module, batch_norm: str = "running") -> nn.Module:
    """The modules of `network` again, in evaluation mode, on the same memory but with weights that require no gradient:
    modes can be set and modules exchanged without anybody else noticing.

    batch_norm   "running" statistics, or those of the "batch" of each call, which are not recorded
    """
    memo: dict[int, Tensor] = {id(value): nn.Parameter(value.detach(), requires_grad=False)
                               for value in network.parameters()}
    memo |= {id(value): value for value in network.buffers()}
    made = copy.deepcopy(network, memo).eval()
    for name, layer in made.named_modules():
        if isinstance(layer, _BatchNorm):
            if batch_norm == "running" and layer.running_mean is None:
                raise FewshotError(f"batch_norm='running', but layer {name} keeps no running statistics; build it with "
                                   "track_running_stats=True or choose batch_norm='batch'")
            layer.training, layer.track_running_stats = batch_norm == "batch", batch_norm == "running"
    return made


@dataclass(frozen=True)
class Images:
    """Images [B, C, H, W] and the outputs [B, ...] of the frozen modules for them, by module name."""

    pixels: Tensor
    outputs: Tensors

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | Tensor) -> Images:
        return Images(self.pixels[rows], {name: value[rows] for name, value in self.outputs.items()})

    def parts(self) -> Iterator[Images]:
        return (self[start : start + _IMAGES] for start in range(0, len(self), _IMAGES))


class ReplayedNetwork:
    """`network` (images [B, C, H, W] -> features [B, D]) with other values for the weights `changing`.

    images = replayed.prepare(pixels)              # runs what comes before the first module with such a weight
    features = replayed(values, images)            # runs the rest; values: {name: Tensor}, others stay as they are

    batch_norm   as in `shared_copy`. With "batch" nothing is replayed: a frozen layer's output then depends on which
                 images are passed together

    A module is replayed if no weight in it changes, it is called once, before any module with a changing weight, and
    returns one tensor [B, ...]. Only outputs that the rest of the network reads are kept. What was found is tried on an
    image before it is used; where the network gives another answer so, nothing is replayed.
    """

    def __init__(self, network: nn.Module, changing: Iterable[str], batch_norm: str = "running"):
        self.changing = tuple(changing)
        self.batch_norm = batch_norm
        self.whole = shared_copy(network, batch_norm)
        self.rest = self.whole
        self.kept: tuple[str, ...] = ()
        self.planned: tuple | None = None  # shape and dtype of the images that the plan was made for

    def prepare(self, pixels: Tensor) -> Images:
        """The images, and what is replayed for them. Computed without gradients."""
        if pixels.ndim == 4 and pixels.device.type == "cpu":
            # Convolutions, pooling and BatchNorm are several times faster so.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            if not self.changing and self.batch_norm == "running":
                return Images(pixels, {"": torch.cat([self.whole(part) for part in pixels.split(_IMAGES)])})
            kind = (pixels.shape[1:], pixels.dtype)
            if self.batch_norm == "running" and self.planned != kind:
                self._plan(pixels[:1].repeat(2, *[1] * (pixels.ndim - 1)))
                self.planned = kind
            if not self.kept:
                return Images(pixels, {})
            found = [self._record(part, self.kept) for part in pixels.split(_IMAGES)]
        return Images(pixels, {name: torch.cat([part[name] for part in found]) for name in self.kept})

    def __call__(self, values: Tensors, images: Images) -> Tensor:
        """Features [B, D], differentiable with respect to the values."""
        if "" in images.outputs:
            return images.outputs[""]
        given = [module for module in self.rest.modules() if isinstance(module, _Given)]
        for module in given:
            module.images = images
        try:
            return functional_call(self.rest, values, (images.pixels,))
        finally:
            for module in given:
                module.images = None

    def _plan(self, probe: Tensor) -> None:
        """Decide what is replayed, by running `probe`, two images."""
        expected, outputs = self.whole(probe), self._record(probe)
        for kept in (self._read(probe, outputs), tuple(outputs)):
            self.rest, self.kept = self._given(outputs), kept
            if kept and torch.equal(self({}, Images(probe, {name: outputs[name] for name in kept})), expected):
                return
        self.rest, self.kept = self.whole, ()

    def _candidates(self) -> dict[str, nn.Module]:
        """The largest modules without a changing weight."""
        def holds(name: str) -> bool:
            return any(weight.startswith(f"{name}.") for weight in self.changing)

        return {name: module for name, module in self.whole.named_modules()
                if name and not holds(name) and (holds(parent := name.rpartition(".")[0]) or not parent)}

    def _record(self, pixels: Tensor, names: Iterable[str] | None = None) -> Tensors:
        """Outputs by name: of the modules `names`, or of all that can be replayed."""
        candidates, spoiled, reached = self._candidates(), set(), []
        outputs: Tensors = {}

        def before(module: nn.Module, arguments: object) -> None:
            reached.append(True)
            if names is not None:
                raise _Reached  # what is recorded ran before

        def after(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, arguments: object, output: Any) -> None:
                fits = isinstance(output, Tensor) and output.ndim > 0 and len(output) == len(pixels)
                if name in outputs or reached or not fits:
                    spoiled.add(name)
                # A copy, because the network may go on in place.
                outputs[name] = output.clone() if fits else output
            return hook

        owners = {name.rpartition(".")[0] for name in self.changing}
        hooks = [self.whole.get_submodule(name).register_forward_pre_hook(before) for name in owners if name]
        hooks += [module.register_forward_hook(after(name)) for name, module in candidates.items()
                  if names is None or name in names]
        if "" in owners:  # a weight of the network itself: it may be used anywhere
            reached.append(True)
        try:
            self.whole(pixels)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return {name: value for name, value in outputs.items() if name not in spoiled}

    def _given(self, outputs: Tensors) -> nn.Module:
        """A copy of the network in which the modules of `outputs` give what they are told."""
        rest = shared_copy(self.whole, self.batch_norm)
        for name, value in outputs.items():
            parent, _, child = name.rpartition(".")
            setattr(rest.get_submodule(parent), child, _Given(name, value))
        return rest

    def _read(self, probe: Tensor, outputs: Tensors) -> tuple[str, ...]:
        """Names of the outputs that the features still depend on."""
        with torch.enable_grad():
            outputs = {name: value.detach().requires_grad_() for name, value in outputs.items()
                       if value.is_floating_point()}
            self.rest = self._given(outputs)
            features = self({}, Images(probe, outputs))
            if not features.requires_grad:
                return ()
            found = torch.autograd.grad(features.sum(), list(outputs.values()), allow_unused=True)
        return tuple(name for name, gradient in zip(outputs, found, strict=True) if gradient is not None)


class _Reached(Exception):
    """The first module with a changing weight: the rest of the network need not run."""


class _Given(nn.Module):
    """In place of the module `name`."""

    def __init__(self, name: str, example: Tensor):
        super().__init__()
        self.name, self.example = name, example.detach()[:0]
        self.images: Images | None = None

    def forward(self, *_: object, **__: object) -> Tensor:
        images = self.images
        assert images is not None, "set for the time of a call"
        if self.name in images.outputs:
            return images.outputs[self.name].clone()
        return self.example.new_zeros(len(images), *self.example.shape[1:])
