"""Methods with weights of their own (a meta-learned head, a relation module): they travel in the weights file of the
backbone they were trained with, under names that begin with "method."."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fewshot.backbones.weights import read_method
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.methods.contract import METHODS, Method, TakesBackbone

if TYPE_CHECKING:
    from fewshot.backbones.base import Backbone

FRESH = "fresh"
_BACKBONE = "backbone."  # a learner that holds its backbone shares those tensors with it


def own_state(method: Method | nn.Module) -> dict[str, Tensor]:
    """The tensors of `method` that are not its backbone's; {} for a method without weights."""
    if not isinstance(method, nn.Module):
        return {}
    return {name: value for name, value in method.state_dict().items() if not name.startswith(_BACKBONE)}


def describe_method(name: str, method: Method | nn.Module) -> dict | None:
    """What a weights file says about the method in it, as plain values; None for a method without weights."""
    state = own_state(method)
    if not state:
        return None
    settings = getattr(method, "settings", method)
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    parameters = {field.name: getattr(settings, field.name) for field in fields if "fitted" not in field.metadata}
    return {"method": name, "parameters": parameters, "ways": getattr(method, "ways", None), "sha256": state_sha256(state)}


def trained_parameters(name: str, weights: str | Path | None) -> dict:
    """The hyper-parameters that the method `name` was trained with, of a weights file that holds one; else {}."""
    found = trained_method(name, weights)
    return METHODS[name].present_names(found[1]["parameters"]) if found else {}


def method_with_weights(name: str, method: Method, backbone: Callable[[], Backbone], ways: int | None,
                        weights: str | Path | None) -> tuple[Method, str | None]:
    """(the method, identity of its own weights). A `method` that needs a backbone is built on `backbone()`; one that has
    weights gets those in the file `weights`, where that holds some of `name`. Else those made with the backbone are fresh,
    with the identity FRESH; any others are values of hyper-parameters, which the run names, and like a method without
    weights it has the identity None.

    Raises FewshotError where the file's tensors do not fit its parameters and ways.
    """
    made_here = method.needs_backbone
    if made_here and isinstance(method, TakesBackbone):
        if ways is None:
            raise FewshotError(f"{name} is made for a number of ways, which this protocol does not have; choose a method "
                               "without a network of its own, or the protocol episodes")
        method = method.with_backbone(backbone(), ways)
    if not isinstance(method, nn.Module):
        return method, None
    method.eval()
    if not own_state(method):
        return method, None
    found = trained_method(name, weights)
    if found is None or weights is None:
        return method, FRESH if made_here else None
    state, described = found
    if getattr(method, "ways", None) not in (None, described["ways"]):
        raise FewshotError(f"{weights} holds {name} for {described['ways']}-way episodes; evaluate with "
                           f"ways={described['ways']}, or train with ways={ways}")
    load_own_state(method, state, weights)
    return method, described["sha256"]


def with_own(weights: str, own: str | None) -> str:
    """Identity of a backbone's weights together with that of a method's own."""
    return weights if own is None else f"{weights}+{own[:16]}"


def load_own_state(method: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Put `state` (of `own_state`) back; raises FewshotError, naming the tensors, where it does not fit."""
    wanted = own_state(method)
    wrong = sorted(name for name in wanted.keys() | state.keys()
                   if name not in wanted or name not in state or wanted[name].shape != state[name].shape)
    if wrong:
        raise FewshotError(f"the tensors {', '.join(wrong[:3])} in {path} do not fit these parameters of the method; use "
                           "the parameters it was trained with")
    method.load_state_dict(state, strict=False)  # not strict: the backbone's tensors are not in it


def trained_method(name: str, weights: str | Path | None) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, description) of the method `name` in a weights file; None where there are none."""
    if weights is None or not Path(weights).is_file():
        return None
    found = read_method(weights)
    return found if found is not None and found[1]["method"] == name else None
