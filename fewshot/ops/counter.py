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


def below(uniform: np.ndarray, limit) -> np.ndarray:
    """Integers 0 .. limit-1; uniform numbers have 53 bits, so the bias is below limit / 2^53."""
    return (uniform * limit).astype(np.int64)


def ordered_subset(uniform: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Per row, k distinct integers below sizes[row] in random order: the first k steps of a Fisher-Yates shuffle.

    uniform [R, k], sizes [R] -> [R, k]. Steps beyond a row's size repeat its last state and must not be used.
    """
    rows, k = uniform.shape
    table = np.broadcast_to(np.arange(max(int(sizes.max()), k), dtype=np.int32), (rows, max(int(sizes.max()), k))).copy()
    row = np.arange(rows)
    for step in range(k):
        other = step + below(uniform[:, step], np.maximum(sizes - step, 1))
        taken = table[row, other]
        table[row, other] = table[:, step]
        table[:, step] = taken
    # Positions past a small row's end hold no item of that row; point them at a valid one.
    return np.minimum(table[:, :k], np.maximum(sizes - 1, 0)[:, None]).astype(np.int64)
