"""Distances, similarities and normalisation, batched over episodes."""

from __future__ import annotations

import torch
from torch import Tensor

_FAR = 16.0  # squared length of the mean of points against their mean squared distance from it


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """||x_i - y_j||^2 for x [E, A, D] and y [E, B, D] -> [E, A, B], never negative.

    Expanded as |x|^2 - 2xy + |y|^2 so that the work is one matrix product.
    """
    x, y = near_origin(x, y)
    # The norms of x in one pass: its squares would be written and read again. The product is faster with the few points
    # of y in front.
    lengths = torch.linalg.vector_norm(x, dim=-1).square().unsqueeze(-2)
    squares = y.square().sum(-1, keepdim=True) + lengths  # [E, B, A]
    return torch.baddbmm(squares, y, x.transpose(-1, -2), alpha=-2).clamp_min(0).transpose(-1, -2)


def near_origin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x [E, A, D] and y [E, B, D], both shifted by the mean of y in episodes where y lies far from the origin compared with
    its spread: there the expansion of a squared distance into inner products would lose digits."""
    centre = y.mean(dim=1, keepdim=True)
    spread = (y - centre).square().sum(-1).mean(1, keepdim=True)
    # Up to this ratio a shift would save two or three bits. It is decided for each episode alone, and a pass over x, the
    # longer side, is saved where no episode needs it.
    far = centre.square().sum(-1) > _FAR * spread  # [E, 1]
    if not far.any():
        return x, y
    shift = centre.where(far.unsqueeze(-1), 0)
    return x - shift, y - shift


def l2_normalise(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """x / max(|x|, epsilon) over the last axis; an all-zero row stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(epsilon)


def cosine(x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Cosine similarities of x [E, A, D] and y [E, B, D] -> [E, A, B]; zero vectors are similar to nothing (0).

    lengths   |x| [E, A], where known
    """
    # x, usually the longer side, is not copied: its norms divide the products.
    products = l2_normalise(y) @ x.transpose(-1, -2)  # [E, B, A]
    lengths = x.norm(dim=-1) if lengths is None else lengths
    return (products / lengths.unsqueeze(-2).clamp_min(1e-12)).transpose(-1, -2)
