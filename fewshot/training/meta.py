"""Meta-training of any module with any loss: a step minimises the mean query loss of a few tasks after adaptation."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from fewshot.core.bars import tqdm
from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.core.seeding import derived_seed
from fewshot.ops.adapt import Adapted, Loss, adapt
from fewshot.training.checkpoint import (
    StopRequest,
    TrainingInterrupted,
    isolated_generators,
    load_checkpoint,
    save_checkpoint,
    stop_on_signals,
)
from fewshot.training.record import CHECKPOINTS, exclusive, refuse_other_run

Task = tuple[Any, Any]


def meta_train(module: nn.Module, tasks: Callable[[int], Task], loss: Loss, optimiser: torch.optim.Optimizer, *, steps: int,
               tasks_per_step: int = 4, inner: Callable[..., Adapted] = adapt, vectorise: bool = False,
               out: str | Path | None = None, every: int = 100, seed: int = 0, progress: bool = True) -> list[dict]:
    """Train `module` in place, in the mode it is in: a step of `optimiser` on the mean of

        loss(inner(module, loss, support), query)

    over the tasks of a step. Returns a history: {"step", "loss", "gradient_norm"}, means over the last `every` steps.

    tasks            i -> (support, query) of task i, a pure function of i, such as `data_set.__getitem__`. Step t takes the
                     tasks t E .. (t+1) E - 1, E = tasks_per_step
    loss             `loss(model, batch)` -> scalar, for the support and for the query set
    optimiser        of the module's parameters, and of others that `inner` or `loss` depends on, such as learned rates
    inner            `functools.partial(fewshot.adapt, learning_rate=0.1, steps=5)`, or one of `fewshot.adapt_implicitly`, or
                     a function (module, loss, support, batched=) -> Adapted of one's own
    vectorise        adapt to all tasks of a step at once (`batched=True`); their tensors are stacked, so their shapes must
                     agree
    out              folder of checkpoints, one every `every` steps. What is there is continued, and finished runs return at
                     once; more steps than before go on from the end. SIGINT and SIGTERM save and raise TrainingInterrupted
    seed             of random numbers inside the module (dropout), which are functions of the seed and the step

    After a step floating buffers (BatchNorm's statistics) are the mean over the tasks, others those of the first task. On
    the CPU an interrupted and resumed run ends in the same bits as one that was not.

    Raises FewshotError for wrong arguments, for a folder that holds another run, for tasks that cannot be stacked, for an
    optimiser of parameters that no loss depends on, and for a loss or gradient that is not finite, before it reaches the
    weights.
    """
    steps, every = check_integer("steps", steps, 1), check_integer("every", every, 1)
    tasks_per_step = check_integer("tasks_per_step", tasks_per_step, 1)
    trained = [value for group in optimiser.param_groups for value in group["params"]]
    state: dict[str, Any] = {"step": 0, "history": [], "pending": []}
    with _folder(out) as folder:
        run: dict = {}
        if folder is not None:
            run = _identity(module, tasks(0), trained, optimiser, inner, tasks_per_step, vectorise, seed)
            checkpoint = load_checkpoint(folder / CHECKPOINTS)
            if checkpoint:
                refuse_other_run(folder, checkpoint["run"], run)
                if checkpoint["state"]["step"] > steps:
                    raise FewshotError(f"{folder} holds {checkpoint['state']['step']} steps, more than steps={steps}; ask "
                                       "for more, or choose another folder")
                _restore(module, trained, optimiser, checkpoint)
                state = checkpoint["state"]

        def save() -> None:
            if folder is not None:
                save_checkpoint(folder / CHECKPOINTS, state["step"], {
                    "run": run, "state": state, "module": module.state_dict(), "optimiser": optimiser.state_dict(),
                    "trained": [value.detach() for value in trained]})

        with (contextlib.nullcontext(StopRequest()) if folder is None else stop_on_signals() as stop,
              tqdm(total=steps, initial=state["step"], desc="meta_train", disable=not progress, unit="step") as bar):
            while state["step"] < steps:
                step = state["step"]
                numbers = range(step * tasks_per_step, (step + 1) * tasks_per_step)
                optimiser.zero_grad()
                with isolated_generators(derived_seed("meta", seed, step)):
                    value, buffers = (_together if vectorise else _one_by_one)(module, map(tasks, numbers), loss, inner)
                state["pending"].append([value, _checked_norm(trained, value, step)])
                optimiser.step()
                _write(module, buffers)
                state["step"] += 1
                bar.update()
                if state["step"] % every == 0 or state["step"] == steps:
                    value, norm = torch.tensor(state["pending"], dtype=torch.float64).mean(0).tolist()
                    state["history"].append({"step": state["step"], "loss": value, "gradient_norm": norm})
                    state["pending"] = []
                    bar.set_postfix(loss=f"{value:.4g}", refresh=False)
                    save()
                elif stop:
                    save()
                if stop.number is not None:
                    raise TrainingInterrupted(state["step"], stop.number)
    return state["history"]


def _one_by_one(module: nn.Module, tasks: Iterator[Task], loss: Loss, inner: Callable[..., Adapted]) -> tuple[float, dict]:
    """(mean loss, buffers {name: [E, ...]}), the gradient of the mean in the parameters."""
    losses, buffers = [], []
    pairs = list(tasks)
    for support, query in pairs:
        model = inner(module, loss, support)
        value = model.each(loss, query)
        _backward(value / len(pairs))
        losses.append(value.item())
        buffers.append(model.buffers)
    return sum(losses) / len(losses), {name: torch.stack([found[name] for found in buffers]) for name in buffers[0]}


def _together(module: nn.Module, tasks: Iterator[Task], loss: Loss, inner: Callable[..., Adapted]) -> tuple[float, dict]:
    """The same with all tasks in one vmap."""
    try:
        support, query = default_collate(list(tasks))
    except RuntimeError as error:
        raise FewshotError(f"the tasks of a step cannot be stacked ({error}); make their shapes equal, or choose "
                           "vectorise=False") from error
    model = inner(module, loss, support, batched=True)
    value = model.each(loss, query).mean()
    _backward(value)
    return value.item(), model.buffers


def _backward(value: Tensor) -> None:
    if not value.requires_grad:
        raise FewshotError("the query loss carries no gradient; compute it from the model that is its first argument, whose "
                           "parameters need requires_grad=True")
    value.backward()


def _checked_norm(trained: list[Tensor], loss: float, step: int) -> float:
    gradients = [value.grad for value in trained if value.grad is not None]
    if not gradients:
        raise FewshotError("no parameter of the optimiser has a gradient; make it from module.parameters() of the module "
                           "that is trained")
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FewshotError(f"the loss is {loss:.4g} and the gradient norm {norm:.4g} at step {step}; the weights are those "
                           "before this step. Lower the learning rate of the inner steps or of the optimiser")
    return norm


@torch.no_grad()
def _write(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, value in module.named_buffers():
        value.copy_(buffers[name].mean(0) if value.is_floating_point() else buffers[name][0])


@torch.no_grad()
def _restore(module: nn.Module, trained: list[Tensor], optimiser: torch.optim.Optimizer, checkpoint: dict) -> None:
    module.load_state_dict(checkpoint["module"])
    for value, stored in zip(trained, checkpoint["trained"], strict=True):
        value.copy_(stored)
    optimiser.load_state_dict(checkpoint["optimiser"])


@contextlib.contextmanager
def _folder(out: str | Path | None) -> Iterator[Path | None]:
    """The folder, held for this process."""
    with contextlib.nullcontext() if out is None else exclusive(Path(out)):
        yield None if out is None else Path(out)


def _identity(module: nn.Module, first: Task, trained: list[Tensor], optimiser: torch.optim.Optimizer,
              inner: Callable[..., Adapted], tasks_per_step: int, vectorise: bool, seed: int) -> dict:
    """What must be equal for a run to be continued: settings, the first task, and initial weights."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(first) if torch.is_tensor(leaf)]
    settings = inner.keywords if isinstance(inner, functools.partial) else {}
    name = getattr(inner.func if isinstance(inner, functools.partial) else inner, "__qualname__", type(inner).__name__)
    return {"tasks_per_step": tasks_per_step, "vectorise": vectorise, "seed": seed, "first_task": _hash(leaves),
            "inner": f"{name}({', '.join(f'{key}={settings[key]!r}' for key in sorted(settings))})",
            "optimiser": f"{type(optimiser).__name__}({optimiser.defaults})",
            "initial_weights": state_sha256(module.state_dict()), "initial_trained": _hash(trained)}


def _hash(tensors: list[Tensor]) -> str:
    return state_sha256({str(number): value for number, value in enumerate(tensors)})
