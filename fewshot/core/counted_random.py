"""Random choices that are a pure function of a key and a number, for any range of numbers in one vectorised call."""

from __future__ import annotations

import hashlib

import numpy as np


def counted_uniforms(stream: str, layout: dict[str, int], start: int, count: int) -> dict[str, np.ndarray]:
    """name -> [count, length] numbers in [0, 1) of items start .. start+count-1 of `stream`.

    Each item owns a fixed block of the counter of a Philox generator, whose key is made from the name of the stream; a
    counter step yields four numbers.
    """
    steps = -(-sum(layout.values()) // 4)
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key, counter=start * steps))
    numbers = generator.random((count, 4 * steps))
    bounds = np.cumsum([0, *layout.values()])
    return {name: numbers[:, a:b] for name, a, b in zip(layout, bounds[:-1], bounds[1:], strict=True)}


def below(uniform: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Integers 0 .. limit-1; uniform numbers have 53 bits, so the bias is below limit / 2^53."""
    return (uniform * limit).astype(np.int64)


def ordered_subset(uniform: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Per row, k distinct integers below sizes[row] in random order: the first k steps of a Fisher-Yates shuffle.

    uniform [R, k], sizes [R] -> [R, k]. Steps beyond a row's size repeat its last state and must not be used.
    """
    rows, k = uniform.shape
    steps = np.arange(k)[:, None]
    other = (steps + below(np.ascontiguousarray(uniform.T), np.maximum(sizes - steps, 1))).astype(np.int32)  # [k, R]
    # Step s swaps places s and other[s]. Instead of a table of all places per row, only what was moved is kept: a place
    # holds its own number, unless an earlier step moved something there, which few did.
    taken, moved = other.copy(), np.broadcast_to(steps.astype(np.int32), other.shape).copy()
    for step in range(1, k):
        for values, place in ((taken[step], other[step]), (moved[step], step)):
            earlier, row = np.divmod(np.flatnonzero(other[:step] == place), rows)
            values[row] = moved[earlier, row]  # of repeated rows the latest step counts
    # Positions past a small row's end hold no item of that row; point them at a valid one.
    return np.minimum(taken.T, np.maximum(sizes - 1, 0)[:, None], dtype=np.int64, order="C")
