"""Where a non-finite value came from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fewshot.methods.bases.gradient_learner import GradientLearner


def first_non_finite(learner: nn.Module, answer: Callable[[], Tensor]) -> str | None:
    """The first layer of `learner` whose weights, output during `answer() -> logits` or gradient hold NaN or infinity;
    None if there is none.

    Runs the network once more, so call it only when training is over anyway.
    """
    for module in learner.modules():
        module._compiled_call_impl = None  # hooks are not seen by compiled calls
        if isinstance(module, GradientLearner):
            module.vectorise = False  # hooks cannot look into tensors under vmap
    weights = _first_bad(dict(learner.named_parameters()))
    if weights:
        return f"the weights of {weights}"
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"{name} ({type(module).__name__})")
        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in learner.named_modules() if name and not any(module.children())]
    try:
        with torch.no_grad():
            logits = answer()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of {found[0]}"
    if not torch.isfinite(logits).all():
        return "the logits of the method"
    gradients = _first_bad({name: p.grad for name, p in learner.named_parameters() if p.grad is not None})
    return f"the gradient of {gradients}" if gradients else None


def _first_bad(tensors: dict[str, Tensor]) -> str | None:
    return next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
