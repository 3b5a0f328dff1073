"""Distances, similarities and normalisation, batched over episodes."""

from __future__ import annotations

import torch
from torch import Tensor

_FAR = 16.0  # squared length of the mean of points against their mean squared distance from it


def squared_euclidean(x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
    """||x_i - y_j||^2 for x [E, A, D] and y [E, B, D] -> [E, A, B], never negative.

    Expanded as |x|^2 - 2xy + |y|^2 so that the work is one matrix product.

    lengths   |x| [E, A], where known
    """
    squares = _squares(y)  # [E, B, 1]
    shift = _far_centre(y, squares)
    if shift is not None:
        x, y, lengths = x - shift, y - shift, None
        squares = _squares(y)
    if lengths is None:
        lengths = torch.linalg.vector_norm(x, dim=-1)
    squares = squares + lengths.square().unsqueeze(-2)  # [E, B, A]
    # The product is faster with the few points of y in front.
    return torch.baddbmm(squares, y, x.transpose(-1, -2), alpha=-2).clamp_min_(0).transpose(-1, -2)


def near_origin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x [E, A, D] and y [E, B, D], both shifted by the mean of y in episodes where y lies far from the origin compared with
    its spread: there the expansion of a squared distance into inner products would lose digits."""
    shift = _far_centre(y, _squares(y))
    return (x, y) if shift is None else (x - shift, y - shift)


def _squares(x: Tensor) -> Tensor:
    """|x|^2 [..., 1] over the last axis. The norm takes one pass where squares would be written and read again."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()


def _far_centre(y: Tensor, squares: Tensor) -> Tensor | None:
    """[E, 1, D] the mean of y in episodes where it is far from the origin, 0 in the others; None where it is so in none,
    which saves a pass over the other points. squares: |y|^2 [E, B, 1]."""
    points, total = y.shape[1], y.sum(1)  # [E, D]
    # |centre|^2 > _FAR (mean |y|^2 - |centre|^2), the mean squared distance from it, for each episode alone. Up to this
    # ratio a shift would save two or three bits.
    limit = points * _FAR / (1 + _FAR)
    far = torch.linalg.vector_norm(total, dim=-1).square() > limit * squares.sum((1, 2))  # [E]
    return (total / points).unsqueeze(1).where(far[:, None, None], 0) if far.any() else None


def l2_normalise(x: Tensor) -> Tensor:
    """x / |x| over the last axis, however short; an all-zero row stays zero."""
    return x / nonzero(x.norm(dim=-1, keepdim=True))


def before_unit(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient at x of what has `gradient` at l2_normalise(x); 0 at an all-zero row."""
    lengths = x.norm(dim=-1, keepdim=True)
    unit = x / nonzero(lengths)
    return ((gradient - unit * (unit * gradient).sum(-1, keepdim=True)) / nonzero(lengths)).where(lengths > 0, 0)


def nonzero(lengths: Tensor) -> Tensor:
    """The lengths to divide by: 1 in place of 0."""
    return lengths.where(lengths > 0, 1)


def cosine(x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Cosine similarities of x [E, A, D] and y [E, B, D] -> [E, A, B]; zero vectors are similar to nothing (0).

    lengths   |x| [E, A], where known
    """
    # x, usually the longer side, is not copied: its norms divide the products.
    products = l2_normalise(y) @ x.transpose(-1, -2)  # [E, B, A]
    lengths = x.norm(dim=-1) if lengths is None else lengths
    return (products / nonzero(lengths).unsqueeze(-2)).transpose(-1, -2)
