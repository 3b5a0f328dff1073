"""Queries of classes outside the episode, for open-set evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewshot.core.checked import check_integer
from fewshot.core.counted_random import counted_uniforms, ordered_subset
from fewshot.core.errors import FewshotError

_STREAM = "fewshot open queries 1"  # apart from the stream of the episodes, which therefore stay what they are


class OpenQueries:
    """Adds queries of other classes to episodes; those of episode i are a pure function of seed, protocol and i.

    labels, sizes, first [C], order [M]   rows of class c are order[first[c] : first[c] + sizes[c]]
    classes, queries   open classes an episode and queries of each;  ways  the most classes an episode has
    """

    def __init__(self, labels: np.ndarray, sizes: np.ndarray, first: np.ndarray, order: np.ndarray, *, classes: int,
                 queries: int, ways: int, seed: int):
        classes, queries = check_integer("open_classes", classes, 1), check_integer("open_queries", queries, 1)
        if ways + classes > len(labels):
            raise FewshotError(f"open_classes={classes} beside ways={ways}, but only {len(labels)} classes can be drawn; "
                               "ask for fewer")
        if queries > sizes.min():
            raise FewshotError(f"open_queries={queries}, but class {labels[np.argmin(sizes)]} has {sizes.min()} images; ask "
                               "for fewer")
        self._labels, self._sizes, self._first, self._order = labels, sizes, first, order
        self._classes, self._queries, self._ways, self._seed = classes, queries, ways, seed

    def add(self, query: Tensor, query_labels: Tensor, classes: Tensor, start: int, count: int,
            where: np.ndarray) -> tuple[Tensor, Tensor]:
        """(rows, labels) [E, Q + open] of episodes start + where, the open queries (label -1) in random places.

        query, query_labels [E, Q], classes [E, N] of these episodes; count: how many are drawn from `start` on.
        """
        drawn = self._classes * self._queries
        layout = {"classes": self._classes, "items": drawn, "places": drawn}
        u = {name: x[where] for name, x in
             counted_uniforms(f"{_STREAM} {self._seed}", layout, start, count).items()}
        taken = (self._labels[None, :, None] == classes.numpy()[:, None, :]).any(2)  # [E, C]
        outside = np.argsort(taken, axis=1, kind="stable")
        place = ordered_subset(u["classes"], (~taken).sum(1))
        chosen = np.take_along_axis(outside, place, 1)  # [E, open classes]
        items = ordered_subset(u["items"].reshape(-1, self._queries), self._sizes[chosen].reshape(-1))
        rows = self._order[self._first[chosen][..., None] + items.reshape(*chosen.shape, -1)].reshape(len(chosen), -1)
        # The places of the open queries are a random subset; the others keep their (random) order in what is left.
        total = query.shape[1] + drawn
        spots = ordered_subset(u["places"], np.full(len(chosen), total))
        merged = torch.full((len(chosen), total), -1).scatter_(1, torch.from_numpy(spots), torch.from_numpy(rows))
        known = merged < 0
        labels = torch.full_like(merged, -1)
        merged[known], labels[known] = query.reshape(-1), query_labels.reshape(-1)
        return merged, labels
