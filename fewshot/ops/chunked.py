"""Pairwise work in blocks of episodes and queries, so that its memory has a limit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ELEMENTS = 1 << 23  # of the largest tensor of a block: 32 MB in float32


def in_blocks(function: Callable[..., Tensor], query: Tensor, *others: Tensor, elements: int) -> Tensor:
    """function(query[e, q], *(x[e] for x in others)) for blocks e of episodes and q of queries, put together.

    query      [E, Q, ...];  others: [E, ...] each, what the queries of an episode are compared with
    function   of the same arguments, the answer of each query depending on no other query: [e, q, ...]
    elements   size of the largest tensor that `function` makes for one query of one episode
    """
    E, Q = query.shape[:2]
    queries = max(1, min(Q, _ELEMENTS // elements))
    episodes = max(1, _ELEMENTS // (elements * queries))
    if queries == Q and episodes >= E:
        return function(query, *others)
    return torch.cat([torch.cat([function(some, *rest) for some in part.split(queries, dim=1)], dim=1)
                      for part, *rest in zip(*(x.split(episodes) for x in (query, *others)), strict=True)])
