"""Gradient steps on the support of a task, for any module and any loss.

`adapt` differentiates through the steps (MAML), `adapt_implicitly` by the implicit function theorem (implicit MAML). The
image methods of the registry (`maml`, `anil`, ...) have a learner of their own, which is faster on images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map  # nested tuples, lists and dictionaries, as vmap sees them

from fewshot.core.checked import check_integer, check_number
from fewshot.core.compiled import plain
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.ops.inner_loop import Tensors, all_at_once, gradients
from fewshot.ops.second_order import differentiable, twice_differentiable

T = TypeVar("T")
Rate = float | Tensor
Loss = Callable[["Adapted", Any], Tensor]


class Adapted:
    """A module with weights of its own for a task, or for each of E tasks; made by `adapt` and `adapt_implicitly`. Called
    like the module; of E tasks with tensors [E, ...], and what it returns has that axis, too.

    module    the one that was adapted; neither its parameters nor its buffers are changed
    weights   {name: tensor} of the adapted parameters, [E, ...] of E tasks. They are part of the graph, so a loss of this
              model has gradients with respect to the module's parameters. All other parameters are those of the module
    buffers   {name: tensor}, all of them. A call in training mode updates these, as it would update those of the module
    tasks     E, None of one task
    """

    def __init__(self, module: nn.Module, weights: Tensors, buffers: Tensors, tasks: int | None = None,
                 shared: Tensors | None = None):
        self.module, self.weights, self.buffers, self.tasks = module, weights, buffers, tasks
        self._shared = shared or {}  # parameters in place of the module's, the same for all tasks
        self._called = False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self.tasks is not None:
            return self.each(lambda model, batch: model(*batch[0], **batch[1]), (inputs, named))
        self._called = True
        # Layers write into copies: what a backward pass needs stays as it was.
        state = {**self.weights, **self._shared, **{name: value.clone() for name, value in self.buffers.items()}}
        output = functional_call(self.module, state, inputs, named)
        self.buffers.update({name: state[name] for name in self.buffers})  # a layer may also have put another tensor there
        return output

    def each(self, function: Callable[[Adapted, Any], T], batch: Any) -> T:
        """`function(model, batch)`: of E tasks that of each, stacked [E, ...], where the function sees the model and the
        batch of one task. `model.each(loss, query)` are the losses of the queries, a scalar of one task and [E] of several.

        batch   tensors [E, ...] in nested tuples, lists and dictionaries; of one task anything

        Raises FewshotError for a batch of another E, and for a layer that `torch.func.vmap` does not know.
        """
        if self.tasks is None:
            return function(self, batch)
        if _tasks_of(batch) != self.tasks:
            raise FewshotError(f"a batch of {_tasks_of(batch)} tasks for a model adapted to {self.tasks}; every tensor "
                               "needs the tasks in front, in the order of the support")

        def one(weights: Tensors, buffers: Tensors, batch: Any) -> tuple[T, Tensors]:
            model = Adapted(self.module, weights, buffers, shared=self._shared)
            value = function(model, batch)
            self._called |= model._called
            return value, model.buffers

        axes = (0, 0, tree_map(lambda leaf: 0 if torch.is_tensor(leaf) else None, batch))
        value, buffers = all_at_once(self.module, one, (self.weights, self.buffers, batch),
                                     "take one task after the other (batched=False, vectorise=False)", axes)
        self.buffers.update(buffers)
        return value


def adapt(module: nn.Module | Adapted, loss: Loss, support: Any, *, steps: int = 1,
          learning_rate: Rate | Mapping[str, Rate] = 0.01, first_order: bool = False, batched: bool = False) -> Adapted:
    """`module` after `steps` steps of gradient descent on `loss(model, support)`; nothing of the module is changed.

        w_{s+1} = w_s - learning_rate dL(w_s; support)/dw

    module          any; or what `adapt` returned, to go on from there. It runs in the mode it is in: BatchNorm in training
                    mode normalises by the batch, dropout draws anew in every step. Tied parameters stay tied
    loss            `loss(model, support)` -> scalar. It calls `model` like the module, as often as it likes
    support         handed to `loss` as it is
    learning_rate   of all parameters with requires_grad=True; or {name: rate} for the parameters to adapt and no others,
                    named as in `module.named_parameters()`. A rate is a number or a tensor, a scalar or of the shape of the
                    parameter. A tensor that requires a gradient gets one (Meta-SGD)
    first_order     take the inner gradients as constants in the outer derivative (FOMAML)
    batched         `support` holds E tasks: tensors [E, ...] in nested tuples, lists and dictionaries. All adapt at once
                    (`torch.func.vmap`), and each is told its own part of `support`

    The answer is differentiable with respect to the module's parameters, those that do not adapt included, the rates, and
    whatever else `loss` depends on: `loss(adapt(module, loss, support), query).backward()` is a step of MAML. Under
    `torch.no_grad` the steps are taken all the same, and nothing is kept.

    Source: Finn et al. 2017, arXiv:1703.03400 (algorithm 1); rates of tensors: Li et al. 2017, arXiv:1707.09835.
    Raises FewshotError for wrong arguments, for names that are no parameters, for a loss that is no scalar or does not
    depend on the model it is given, and for a module without a second derivative.
    """
    steps = check_integer("steps", steps, 0)
    start = _start(module, support, batched)
    rates = _rates(start.module, learning_rate)
    outside = torch.is_grad_enabled()
    # Nothing can be differentiated in inference mode, not even for the inner steps.
    with torch.inference_mode(False), torch.set_grad_enabled(outside):
        support = tree_map(_ordinary, support)
        weights, buffers = {**_parameters(start, rates), **start.weights}, dict(start.buffers)
        for step in range(steps):
            weights, found, buffers = _gradients(start, loss, support, weights, buffers, rates, not first_order)
            if step == 0 and outside and not first_order and not differentiable(found.values()):
                raise FewshotError(f"a layer of {type(start.module).__name__}, or the loss, has no second derivative, which "
                                   "first_order=False needs; choose first_order=True")
            weights = {**weights, **{name: weights[name] - rates[name] * gradient for name, gradient in found.items()}}
    return Adapted(start.module, weights, buffers, start.tasks)


def adapt_implicitly(module: nn.Module, loss: Loss, support: Any, *, steps: int = 16,
                     learning_rate: float | Mapping[str, float] = 0.01, strength: float = 2.0, conjugate_steps: int = 5,
                     batched: bool = False) -> Adapted:
    """`module` with the weights that minimise `loss(model, support) + strength/2 |w - w_0|^2`, w_0 its own; the gradient
    with respect to w_0 follows from the minimum alone and not from the path that led there:

        dw/dw_0 = (I + H / strength)^-1,   H = d^2 loss(w; support) / dw^2

    Memory does not grow with `steps`. The product with the inverse is found by conjugate gradients in the backward pass.

    steps             of gradient descent on the sum, the approximation of the minimum; its gradients are right as far as it
                      is one
    learning_rate     as in `adapt`, numbers alone: the minimum does not depend on them
    strength          lambda of the paper. It must exceed -1 times the smallest eigenvalue of H, else there is no such
                      minimum
    conjugate_steps   at most so many, from the solution for H = 0 on, which is what 0 leaves; each costs two backward passes

    The other arguments are those of `adapt`. Parameters that do not adapt get their gradients as well, through the query
    loss and through the minimum; other tensors that `loss` depends on get none through the minimum. There are no second
    derivatives. The backward pass computes the loss once more: layers that draw at random (dropout) draw anew there. Where a
    step of the conjugate gradients meets a direction of negative curvature, the solution so far is kept.

    Source: Rajeswaran et al. 2019, arXiv:1909.04630 (algorithms 1 and 2).
    Deviation: conjugate gradients start from the solution for H = 0 instead of 0.
    Raises FewshotError as `adapt` does, and for a support or a rate that requires a gradient.
    """
    steps, conjugate_steps = check_integer("steps", steps, 0), check_integer("conjugate_steps", conjugate_steps, 0)
    strength = check_number("strength", strength, 0, low_allowed=False)
    if not isinstance(module, nn.Module):
        raise FewshotError("adapt_implicitly starts from a module and not from adapted weights; pass the module")
    start = _start(module, support, batched)
    rates = _rates(start.module, learning_rate)
    if any(torch.is_tensor(leaf) and leaf.requires_grad for leaf in (*tree_flatten(support)[0], *rates.values())):
        raise FewshotError("the support or a learning rate requires a gradient, and implicit gradients do not reach it; "
                           "detach it, or use adapt")
    outside = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(outside):
        support = tree_map(_ordinary, support)
        initial = _parameters(start, rates)
        anchor = {name: value.detach() for name, value in initial.items()}
        weights, buffers = dict(anchor), dict(start.buffers)
        with torch.no_grad():
            for _ in range(steps):
                weights, found, buffers = _gradients(start, loss, support, weights, buffers, rates, second_order=False)
                weights = {name: value.detach() - rates[name] * (found[name] + strength * (value.detach() - anchor[name]))
                           for name, value in weights.items()}
        others: Tensors = {name: value for name, value in start.module.named_parameters()
                           if value.requires_grad and name not in rates}

        def scaled(weights: Tensors, others: Tensors) -> Tensor:
            """loss / strength + |w - w_0|^2 / 2 of all tasks together, whose Hessian in w is I + H / strength."""
            value = _value(Adapted(start.module, weights, dict(buffers), start.tasks, others), loss, support) / strength
            return value + sum((weights[name] - anchor[name]).square().sum() for name in weights) / 2

        minimum = at_minimum(scaled, weights, initial, others, conjugate_steps, start.tasks)
    return Adapted(start.module, minimum, buffers, start.tasks)


def at_minimum(scaled: Callable[[Tensors, Tensors], Tensor], weights: Tensors, initial: Tensors, others: Tensors,
               conjugate_steps: int, tasks: int | None = None) -> Tensors:
    """`weights`, {name: tensor}, as functions of `initial` and `others`, whose minimiser they are.

    scaled            (weights, others) -> F = loss / strength + |weights - initial|^2 / 2, summed over the tasks
    initial           those that the distance is to, in the shapes and the order of `weights`
    others            further tensors that the loss depends on, {name: tensor}, shared by the tasks
    conjugate_steps   as in `adapt_implicitly`
    tasks             E where weights are stacked [E, ...], each a system of its own; None for one task

    `scaled` is called once in the backward pass, which raises FewshotError for a layer without a second derivative.
    """
    found = _Minimum.apply(scaled, weights, list(others), conjugate_steps, tasks, *initial.values(), *others.values())
    return dict(zip(weights, found, strict=True))


class _Minimum(torch.autograd.Function):
    """(initial weights, other parameters) -> weights at the minimum of `scaled`, which were found before.

    With F = `scaled` and u the solution of F_ww u = v, for the incoming gradients v: the gradient of w_0 is u, since F_w
    contains -w_0, and that of another parameter p is -(d F_w / d p)^T u.
    """

    @staticmethod
    def forward(ctx: Any, scaled: Callable[[Tensors, Tensors], Tensor], weights: Tensors, others: list[str], steps: int,
                tasks: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = tuple(weights.values())
        ctx.scaled, ctx.names, ctx.others, ctx.steps, ctx.tasks = scaled, list(weights), others, steps, tasks
        ctx.save_for_backward(*found, *tensors[len(found):])
        return tuple(value.clone() for value in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:
        saved = [value.detach().requires_grad_() for value in ctx.saved_tensors]
        at, others = saved[:len(ctx.names)], saved[len(ctx.names):]
        rows, sizes = ctx.tasks or 1, [value.numel() // (ctx.tasks or 1) for value in at]

        def flat(values: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([value.reshape(rows, -1) for value in values], dim=1)

        def apart(vector: Tensor) -> list[Tensor]:
            return [part.reshape(value.shape) for part, value in zip(vector.split(sizes, dim=1), at, strict=True)]

        with torch.enable_grad(), twice_differentiable():
            value = ctx.scaled(dict(zip(ctx.names, at, strict=True)), dict(zip(ctx.others, others, strict=True)))
            slope = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
        if not differentiable(slope):
            raise FewshotError("a layer, or the loss, has no second derivative, which implicit gradients need; take another "
                               "layer, or a first-order method (adapt with first_order=True, maml with first_order=true)")

        def product(vector: Tensor) -> Tensor:
            return flat(torch.autograd.grad(slope, at, apart(vector), retain_graph=True, materialize_grads=True))

        solution = apart(conjugate_gradients(product, flat(wanted), ctx.steps))
        through = torch.autograd.grad(slope, others, [-part for part in solution], materialize_grads=True) if others else ()
        return (*[None] * 5, *solution, *through)


def conjugate_gradients(product: Callable[[Tensor], Tensor], wanted: Tensor, steps: int) -> Tensor:
    """x [E, P] with A_e x_e = wanted_e after at most `steps` steps of conjugate gradients from x = wanted.

    product   x [E, P] -> A x [E, P], each A_e symmetric

    A system is left as it is once it is solved up to rounding, and where the direction of the step has no positive
    curvature.
    """
    x = wanted.clone()
    residual = direction = wanted - product(x)
    length = residual.square().sum(1, keepdim=True)  # [E, 1]
    least = (torch.finfo(wanted.dtype).eps * wanted.norm(dim=1, keepdim=True)).square()
    for _ in range(steps):
        image = product(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        active = (length > least) & (curvature > 0)
        if not active.any():
            break
        size = torch.where(active, length / curvature, 0)
        x = x + size * direction
        residual = residual - size * image
        after = residual.square().sum(1, keepdim=True)
        direction = torch.where(active, residual + after / length * direction, direction)
        length = after
    return x


def _start(module: Any, support: Any, batched: bool) -> Adapted:
    """The model before the first step."""
    if isinstance(module, Adapted):
        tasks = _tasks_of(support) if module.tasks is not None else None
        if tasks != module.tasks:
            raise FewshotError(f"a support of {tasks} tasks for a model adapted to {module.tasks}; go on with "
                               "the same tasks")
        return Adapted(module.module, module.weights, module.buffers, tasks)
    if not isinstance(module, nn.Module):
        raise FewshotError(f"module is a {type(module).__name__}; pass a torch.nn.Module")
    module = plain(module)  # compiled calls have no second derivative
    tasks = _tasks_of(support) if batched else None
    return Adapted(module, {}, {name: _for_tasks(value, tasks) for name, value in module.named_buffers()}, tasks)


def _parameters(start: Adapted, rates: dict[str, Rate]) -> Tensors:
    """The module's own values of the parameters that have rates, [E, ...] of E tasks."""
    return {name: _for_tasks(start.module.get_parameter(name), start.tasks) for name in rates}


def _for_tasks(value: Tensor, tasks: int | None) -> Tensor:
    return value if tasks is None else value.expand(tasks, *value.shape)


def _tasks_of(batch: Any) -> int:
    """E of tensors [E, ...]; raises FewshotError where they differ, and for what cannot be cut into tasks."""
    sizes = set()
    for leaf in tree_flatten(batch)[0]:
        if torch.is_tensor(leaf):
            sizes.add(len(leaf) if leaf.ndim else 0)
        elif not isinstance(leaf, (int, float, str, type(None))):
            raise FewshotError(f"a batch of several tasks holds a {type(leaf).__name__}; make it of tensors [E, ...] in "
                               "nested tuples, lists and dictionaries")
    if len(sizes) != 1 or not min(sizes):
        raise FewshotError(f"tensors of a batch of several tasks have {sorted(sizes)} rows; give each the same number of "
                           "tasks, at least one, in front")
    return sizes.pop()


def _ordinary(leaf: Any) -> Any:
    """Copies of what was made in inference mode are ordinary tensors again."""
    return leaf.clone() if torch.is_tensor(leaf) and leaf.is_inference() else leaf


def _rates(module: nn.Module, learning_rate: Rate | Mapping[str, Rate]) -> dict[str, Rate]:
    """The rate of every parameter that adapts, by name."""
    parameters = dict(module.named_parameters())
    if not isinstance(learning_rate, Mapping):
        learning_rate = {name: learning_rate for name, value in parameters.items() if value.requires_grad}
    rates: dict[str, Rate] = {}
    for name, rate in learning_rate.items():
        if name not in parameters:
            raise FewshotError(f"learning_rate: {unknown_message('parameter', name, list(parameters))}")
        if not torch.is_tensor(rate):
            rates[name] = check_number(f"learning_rate of {name}", rate, 0)
        elif rate.ndim and rate.shape != parameters[name].shape:
            raise FewshotError(f"learning_rate of {name} has the shape {tuple(rate.shape)}, the parameter "
                               f"{tuple(parameters[name].shape)}; give a number, a scalar tensor or one of the same shape")
        else:
            rates[name] = rate
    if not rates:
        raise FewshotError(f"no parameter of {type(module).__name__} adapts: none has requires_grad=True, or learning_rate "
                           "is empty; name some in learning_rate")
    return rates


def _gradients(start: Adapted, loss: Loss, support: Any, weights: Tensors, buffers: Tensors, rates: dict[str, Rate],
               second_order: bool) -> tuple[Tensors, Tensors, Tensors]:
    """(weights, gradients by name, buffers) of the support's loss; see `gradients`."""
    def objective(weights: Tensors) -> tuple[Tensor, Tensors]:
        model = Adapted(start.module, weights, dict(buffers), start.tasks)
        return _value(model, loss, support), model.buffers

    return gradients(objective, weights, rates, second_order)


def _value(model: Adapted, loss: Loss, batch: Any) -> Tensor:
    """The sum of the tasks' losses, whose gradient with respect to the weights of a task is that of its own."""
    value = model.each(loss, batch)
    shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
    if shape != (() if model.tasks is None else (model.tasks,)):
        raise FewshotError(f"the loss of a task must be a scalar tensor; got {shape}: reduce it, e.g. by .mean()")
    if not model._called or not value.requires_grad:
        raise FewshotError("the loss does not depend on the weights that adapt; compute it from the model that is its "
                           "first argument: def loss(model, batch): ... model(x) ...")
    return value.sum()
