"""Weights on disk: safetensors files that know which backbone they belong to and what they have seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fewshot.errors import FewshotError
from fewshot.files import write_atomically

if TYPE_CHECKING:
    from fewshot.backbones.base import Backbone


def state_sha256(state: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values; the same for every device and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {value.dtype} {tuple(state[name].shape)};".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(backbone: Backbone, path: str | Path, provenance: dict | None = None) -> str:
    """Write the state dict atomically, with the backbone's description and `provenance` (how the weights came about:
    data, losses, epochs, ...; JSON values). Returns the sha256 of the state dict."""
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    described = backbone.describe()
    meta = {"backbone": json.dumps(described, sort_keys=True),
            "provenance": json.dumps(provenance or {}, sort_keys=True)}
    write_atomically(path, save(state, metadata=meta))
    return described["weights_sha256"]


def load_weights(backbone: Backbone, path: str | Path) -> dict:
    """Load a file written by `save_weights` into `backbone`, in place, and return its provenance.

    The backbone also takes over what belongs to the weights: `pretrained_on`, and mean and std of the transform.
    Raises FewshotError if the file is missing, corrupt or altered, and if a name or shape differs; the backbone is
    then unchanged.
    """
    state, described, provenance = read_weights(path)
    problems = _mismatches(backbone.state_dict(), state)
    if problems:
        raise FewshotError(f"{path} holds weights of {described['backbone']!r} {described['options']}, which do not "
                           f"fit {backbone.name!r} {backbone.options}: {'; '.join(problems)}")
    backbone.load_state_dict(state, strict=True)
    backbone.pretrained_on = described["pretrained_on"]
    saved = described["transform"]
    backbone.transform = dataclasses.replace(backbone.transform, mean=tuple(saved["mean"]), std=tuple(saved["std"]))
    return provenance


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict, dict]:
    """(state dict, description of the backbone, provenance) of a file written by `save_weights`."""
    path = Path(path)
    if not path.is_file():
        raise FewshotError(f"no weights at {path}; write them with save_weights")
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            meta = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise FewshotError(f"{path} is not a readable weights file ({error})") from None
    if "backbone" not in meta:
        raise FewshotError(f"{path} has no fewshot metadata; load its tensors into a backbone (load_state_dict) and "
                           "write them with save_weights")
    described = json.loads(meta["backbone"])
    if state_sha256(state) != described["weights_sha256"]:
        raise FewshotError(f"{path} does not match its checksum; it was altered or damaged")
    return state, described, json.loads(meta["provenance"])


def _mismatches(expected: dict[str, Tensor], found: dict[str, Tensor], shown: int = 3) -> list[str]:
    """Up to `shown` examples of every kind of difference."""
    kinds = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "shape differs": [f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in expected
                          if n in found and found[n].shape != expected[n].shape],
    }
    return [f"{len(names)} {kind} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"
            for kind, names in kinds.items() if names]
