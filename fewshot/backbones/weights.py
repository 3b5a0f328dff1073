"""Weights on disk: safetensors files that know which backbone they belong to and what they have seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fewshot.backbones.seen import seen_in
from fewshot.core.compiled import plain_name
from fewshot.core.errors import FewshotError
from fewshot.core.files import opened_safetensors, read_safetensors, replacing, save_tensors
from fewshot.core.hashing import state_sha256

if TYPE_CHECKING:
    from fewshot.backbones.base import Backbone

_WEIGHTS = ("weights", "a readable weights file", "write them with save_weights", "write them again with save_weights")
_METHOD = "method."  # tensors of a method that was trained with the backbone


def save_weights(backbone: Backbone, path: str | Path, provenance: dict | None = None, *,
                 method: tuple[dict[str, Tensor], dict] | None = None) -> str:
    """Write the state dict atomically, with the backbone's description and `provenance` (how the weights came about:
    data, losses, epochs, ...; JSON values), to which `Backbone.seen` is added. Returns the sha256 of the state dict.

    method   tensors and description of a method that was trained with the backbone, see `fewshot.methods.bases.own_weights`
    """
    backbone = _uncompiled(backbone)
    described, provenance = backbone.describe(), dict(provenance or {})
    if backbone.seen:
        provenance.setdefault("seen", backbone.seen)
    meta = {"backbone": json.dumps(described, sort_keys=True), "provenance": json.dumps(provenance, sort_keys=True)}
    state = {plain_name(name): value for name, value in backbone.state_dict().items()}
    if method is not None:
        state |= {_METHOD + name: value for name, value in method[0].items()}
        meta["method"] = json.dumps(method[1], sort_keys=True)
    with replacing(path) as temporary:
        save_tensors(temporary, state, meta)
    return described["weights_sha256"]


def load_weights(backbone: Backbone, path: str | Path) -> dict:
    """Load a file written by `save_weights` into `backbone`, in place, and return its provenance.

    The backbone also takes over what belongs to the weights: `pretrained_on`, `seen`, and mean and std of the transform.
    Raises FewshotError if the file is missing, corrupt or altered, and if a name or shape differs; the backbone is
    then unchanged.
    """
    backbone = _uncompiled(backbone)
    state, described, provenance = read_weights(path)
    names = {name: plain_name(name) for name in backbone.state_dict()}
    problems = mismatches({names[name]: value for name, value in backbone.state_dict().items()}, state)
    if problems:
        raise FewshotError(f"{path} holds weights of {described['backbone']!r} {described['options']}, which do not "
                           f"fit {backbone.name!r} {backbone.options}: {'; '.join(problems)}")
    backbone.load_state_dict({name: state[plain] for name, plain in names.items()}, strict=True)
    backbone.pretrained_on, backbone.seen = described["pretrained_on"], seen_in(provenance)
    saved = described["transform"]
    backbone.transform = dataclasses.replace(backbone.transform, mean=tuple(saved["mean"]), std=tuple(saved["std"]))
    return provenance


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict, dict]:
    """(state dict, description of the backbone, provenance) of a file written by `save_weights`."""
    state, meta = _read(path)
    state = {name: value for name, value in state.items() if not name.startswith(_METHOD)}
    described = json.loads(meta["backbone"])
    if state_sha256(state) != described["weights_sha256"]:
        raise FewshotError(f"{path} does not match its checksum; it was altered or damaged")
    return state, described, json.loads(meta["provenance"])


def read_method(path: str | Path) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, description) of the method in a file written by `save_weights`; None where it holds a backbone alone."""
    state, meta = _read(path)
    if "method" not in meta:
        return None
    state = {name.removeprefix(_METHOD): value for name, value in state.items() if name.startswith(_METHOD)}
    described = json.loads(meta["method"])
    if state_sha256(state) != described["sha256"]:
        raise FewshotError(f"{path} does not match its checksum; it was altered or damaged")
    return state, described


def describe_weights(path: str | Path) -> dict:
    """The description of the backbone in a file written by `save_weights`, read from its header alone: nothing is checked
    that loading the weights checks."""
    with opened_safetensors(path, *_WEIGHTS) as handle:
        return json.loads(_known(path, handle.metadata() or {})["backbone"])


def provenance_of(path: str | Path) -> dict:
    """How the weights in a file written by `save_weights` came about, read from its header alone."""
    with opened_safetensors(path, *_WEIGHTS) as handle:
        return json.loads(_known(path, handle.metadata() or {}).get("provenance", "{}"))


def _uncompiled(backbone: Backbone) -> Backbone:
    """The network inside what torch.compile made of it, whose tensors have the same names whoever loads them."""
    return getattr(backbone, "_orig_mod", backbone)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    state, meta = read_safetensors(path, *_WEIGHTS)
    return state, _known(path, meta)


def _known(path: str | Path, meta: dict[str, str]) -> dict[str, str]:
    if "backbone" not in meta:
        raise FewshotError(f"{path} has no fewshot metadata; weights of timm or another project are brought in by `fewshot "
                           "convert` (convert_official), others by load_state_dict and save_weights")
    return meta


def mismatches(expected: dict[str, Tensor], found: dict[str, Tensor], shown: int = 3) -> list[str]:
    """Up to `shown` examples of every kind of difference."""
    kinds = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "shape differs": [f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in expected
                          if n in found and found[n].shape != expected[n].shape],
    }
    return [f"{len(names)} {kind} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"
            for kind, names in kinds.items() if names]
