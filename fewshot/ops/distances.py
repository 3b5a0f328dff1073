"""Distances, similarities and normalisation, batched over episodes."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """||x_i - y_j||^2 for x [E, A, D] and y [E, B, D] -> [E, A, B], never negative.

    Expanded as |x|^2 - 2xy + |y|^2 so that the work is one matrix product. Both sides are first shifted by the mean
    of y: the expansion loses digits when the points lie far from the origin compared with their distances.
    """
    centre = y.mean(dim=1, keepdim=True)
    x, y = x - centre, y - centre
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(squares, x, y.transpose(-1, -2), alpha=-2).clamp_min(0)


def l2_normalise(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """x / max(|x|, epsilon) over the last axis; an all-zero row stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(epsilon)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarities of x [E, A, D] and y [E, B, D] -> [E, A, B]; zero vectors are similar to nothing (0)."""
    # x, usually the longer side, is not copied: its norms divide the products.
    return x @ l2_normalise(y).transpose(-1, -2) / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
