"""sha256 of what numbers depend on, equal wherever it lies."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fewshot.core.compiled import plain_name


def state_sha256(state: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values; the same for every device and memory layout, compiled or not."""
    state = {plain_name(name): value for name, value in state.items()}
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {value.dtype} {tuple(state[name].shape)};".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()
