"""Second derivatives: convolution and BatchNorm whose are cheaper than PyTorch's, with the same values and derivatives;
layers whose are missing there.

PyTorch composes the derivative of BatchNorm's backward pass of many passes over the feature map; `_NormBackward` writes it
as a fused one and a few sums. The derivative of a convolution's backward pass it computes as a convolution with kernels as
large as the map, and with respect to the images even where nobody asks; `_ConvolutionBackward` uses the kernels of
ordinary training.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_convolution, _convolution_backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
_norm, _norm_backward = torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward


_MISSING = ("torch::autograd::NotImplemented", "torch::autograd::Error")  # nodes that raise when they are differentiated


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within this context attention and F.hardsigmoid have second derivatives: of the kernels of attention only MATH has
    one, of hardsigmoid none, so that it is written out. The values are the same up to rounding. Under vmap, too."""
    with sdpa_kernel(SDPBackend.MATH), _WrittenOut():
        yield


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def differentiable(gradients: Iterable[Tensor]) -> bool:
    """Whether gradients made with create_graph can be differentiated: no layer on the way lacks a second derivative."""
    todo, seen = [gradient.grad_fn for gradient in gradients], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            if node.name() in _MISSING:
                return False
            seen.add(node)
            todo.extend(after for after, _ in node.next_functions)
    return True


def layer_without_second_derivative(network: nn.Module, images: Tensor) -> str | None:
    """Name and kind of the innermost layer of `network` that has no second derivative in `twice_differentiable`; None where
    none is found. Works on a copy."""
    network, calls = copy.deepcopy(network), []

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, inputs, named, _output: calls.append((name, module, inputs, named)),
                                     with_kwargs=True)

    for name, module in network.named_modules():
        watch(name, module)
    with torch.enable_grad(), twice_differentiable():
        network(images)
        for name, module, inputs, named in list(calls):  # a layer comes before those that contain it
            leaves = [value.detach().requires_grad_() if torch.is_tensor(value) and value.is_floating_point() else value
                      for value in inputs]
            # Copies, because a layer may work in place.
            output = module(*(value.clone() if torch.is_tensor(value) else value for value in leaves), **named)
            outputs = output if isinstance(output, tuple) else (output,)
            values = [value.square().sum() for value in outputs if torch.is_tensor(value) and value.requires_grad]
            free = [value for value in (*leaves, *module.parameters()) if torch.is_tensor(value) and value.requires_grad]
            if values and not differentiable(torch.autograd.grad(values, free, create_graph=True, materialize_grads=True)):
                return f"{name} ({type(module).__name__})" if name else type(module).__name__
    return None


class CheapSecondOrder(TorchFunctionMode):
    """Within this context F.conv2d and, where it normalises by the batch, F.batch_norm are those of this module.

    They cannot be called under vmap.
    """

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            return conv2d(*args, **kwargs)
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
           padding: int | str | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """F.conv2d; in autocast, too."""
    if isinstance(padding, str) or input.ndim != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    device = input.device.type
    if torch.is_autocast_enabled(device):  # autocast sees operators, not what a Function is applied to
        dtype = torch.get_autocast_dtype(device)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    return _Convolution.apply(input, weight, bias, geometry)


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """F.batch_norm."""
    if not training or weight is None or bias is None or input.numel() == input.shape[1]:  # which PyTorch refuses
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _Norm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), None


class _ConvolutionBackward(Function):
    """(g * weight^T, x * g, sum of g): bilinear in g and (x, weight), hence so are its derivatives."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: tuple,
                needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _convolution_backward(g, x, weight, [weight.shape[0]] if needed[2] else None, *geometry, needed)

    @staticmethod
    def backward(ctx: Any, to_x: Tensor | None, to_weight: Tensor | None,
                 to_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        geometry, (needs_g, needs_x, needs_weight) = ctx.geometry, ctx.needs_input_grad[:3]
        d_g = d_x = d_weight = None
        if needs_g and to_weight is not None:
            d_g = _convolution(x, to_weight, to_bias, *geometry)
        elif needs_g and to_bias is not None:
            d_g = to_bias.view(1, -1, 1, 1).expand_as(g)
        if needs_g and to_x is not None:
            through_x = _convolution(to_x, weight, None, *geometry)
            d_g = through_x if d_g is None else d_g + through_x
        if needs_x and to_weight is not None:
            d_x = _convolution_backward(g, x, to_weight, None, *geometry, [True, False, False])[0]
        if needs_weight and to_x is not None:
            d_weight = _convolution_backward(g, to_x, weight, None, *geometry, [False, True, False])[1]
        return d_g, d_x, d_weight, None, None


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                momentum: float, eps: float) -> Tensor:
        y, mean, rstd = _norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 7
        x, weight, mean, rstd = ctx.saved_tensors
        return *_NormBackward.apply(g, x, weight, mean, rstd, ctx.eps), None, None, None, None


class _NormBackward(Function):
    """With u = (x - mean) rstd and P(a) = a - mean(a) - u mean(a u), the gradients of BatchNorm are
    (weight rstd P(g), sum of g u, sum of g). P is symmetric. Sums and means are over all axes but the channels."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
                eps: float) -> tuple[Tensor, Tensor, Tensor]:
        d_x, d_weight, d_bias = _norm_backward(g, x, weight, None, None, mean, rstd, True, eps, [True, True, True])
        ctx.save_for_backward(g, x, weight, mean, rstd, d_weight, d_bias)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return d_x, d_weight, d_bias

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, to_weight: Tensor | None,
                 to_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, rstd, g_u, g_1 = ctx.saved_tensors  # g_u = sum of g u, g_1 = sum of g
        with torch.no_grad():
            zero = torch.zeros_like(weight)
            to_weight, to_bias = zero if to_weight is None else to_weight, zero if to_bias is None else to_bias
            v = torch.zeros_like(x) if v is None else v
            d_g, v_u, v_1 = _norm_backward(v, x, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True])
            n = x.numel() / x.shape[1]
            projected = (v * g).sum(_others(x), dtype=weight.dtype) - (v_1 * g_1 + v_u * g_u) / n  # sum of v P(g)
            d_weight = rstd * projected
            # d_x = rstd P(h) - weight rstd^2 projected u / n with h = to_weight g - weight rstd (mean(g u) v + mean(v u) g)
            of_v = -weight * rstd.square() * g_u / n
            of_g = rstd * to_weight - weight * rstd.square() * v_u / n
            of_u = -(of_v * v_u + of_g * g_u + rstd.square() * weight * projected) / n
            of_1 = -(of_v * v_1 + of_g * g_1) / n
            d_x = _affine(((of_v, v), (of_g, g), (of_u * rstd, x)), of_1 - of_u * rstd * mean)
            d_g = d_g + _affine(((to_weight * rstd, x),), to_bias - to_weight * rstd * mean)
        return *_Last.apply(d_g, d_x, d_weight, g, x, weight), None, None, None


class _Last(Function):
    """The first three arguments, derivatives that depend on the others and cannot be differentiated again. PyTorch's
    once_differentiable would let wrong zeros through where torch.autograd.grad is told its inputs."""

    @staticmethod
    def forward(ctx: Any, d_g: Tensor, d_x: Tensor, d_weight: Tensor, g: Tensor, x: Tensor,
                weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return d_g, d_x, d_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise RuntimeError("batch_norm has no third derivative, here as in PyTorch")


def _others(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _affine(terms: Sequence[tuple[Tensor, Tensor]], constant: Tensor) -> Tensor:
    """constant + sum of factor * map, with factors and the constant per channel."""
    shape = (1, -1, *(1 for _ in range(terms[0][1].ndim - 2)))
    total = constant.to(terms[0][1].dtype).view(shape)
    for factor, value in terms:
        total = torch.addcmul(total, value, factor.to(value.dtype).view(shape))
    return total
