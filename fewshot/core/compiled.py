"""Networks wrapped by `torch.compile`: the same tensors, under names with "_orig_mod." in them."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")
_WRAPPED = "_orig_mod"


def plain(network: T) -> T:
    """The network that `torch.compile(network)` wraps; any other as it is."""
    return getattr(network, _WRAPPED, network)


def plain_name(name: str) -> str:
    """The name of a tensor as it is without `torch.compile`, of the whole network or of parts of it."""
    return name.replace(f"{_WRAPPED}.", "")


def compile_like(network: Any, model: Any) -> None:
    """Compile the calls of `network` with the settings of `model`, where that is one that `torch.compile` wrapped. As with
    `network.compile()` no tensor gets another name; `network.forward` stays as it is."""
    if plain(model) is not model:
        network._compiled_call_impl = model.dynamo_ctx(network._call_impl)
