"""The precision in which features are worked on: their own, unless arithmetic in it would give numbers that are wrong."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
_LONGEST, _SHORTEST = 1e8, 1e-3  # lengths of features whose squares, and 1 + their squares, float32 holds
_FARTHEST = 30.0  # the longest row against the median
_SHORTEST_ROW = 1e-15  # of a single row that is not zero: below, its squares vanish
_NEAR = 1e-4  # 1 - cosine: below, float32 keeps three digits of it at most
_SAMPLE = 4096  # pairs of rows that are looked at
_ROWS = 1 << 14  # rows worked on together


def working_dtype(features: Tensor, lengths: Tensor | None = None) -> torch.dtype:
    """The dtype for arithmetic on features [M, D], finite.

    float64 stays. Half precision holds features well enough, but neither their sums nor their distances: it is widened to
    float32. That, in turn, is widened to float64 where squares would overflow or vanish, where a few points lie so far out
    that the others would be rounding errors of the mean, and where most points lie so nearly in one direction that distances
    and cosines would be.

    lengths   |z| [M] in float32, where known
    """
    if features.dtype == torch.float64 or not len(features):
        return features.dtype
    lengths = row_lengths(features, torch.float32) if lengths is None else lengths
    longest = float(lengths.max())
    if not longest <= min(_LONGEST, _FARTHEST * float(lengths.median())) or longest < _SHORTEST:
        return torch.float64 if longest > 0 or bool((features != 0).any()) else torch.float32
    short = features[lengths < _SHORTEST_ROW]
    return torch.float64 if bool((short != 0).any()) or _close_together(features) else torch.float32


def row_lengths(features: Tensor, dtype: torch.dtype) -> Tensor:
    """|z| [M] of features [M, D], computed in `dtype`."""
    if dtype == features.dtype:
        return torch.linalg.vector_norm(features, dim=-1)
    return torch.cat([torch.linalg.vector_norm(rows, dim=-1, dtype=dtype) for rows in features.split(_ROWS)])


def _close_together(features: Tensor) -> bool:
    """Whether more than an eighth of pairs of rows have directions closer than _NEAR, without being equal."""
    # Rows i and i + step for several steps: any order of the rows, by class or not, brings different classes together.
    rows, found = len(features), []
    for part in (2, 3, 5):
        first = torch.arange(0, rows, max(1, 3 * rows // _SAMPLE), device=features.device)
        x, y = (torch.nn.functional.normalize(features[which].float(), dim=-1) for which in
                (first, (first + rows // part) % rows))
        apart = (x - y).square().sum(-1)  # 2 (1 - cosine)
        found.append((apart > 0) & (apart < 2 * _NEAR))
    return float(torch.cat(found).float().mean()) > 1 / 8
