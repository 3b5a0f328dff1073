from __future__ import annotations

import numpy as np
import pytest

from fewshot.core.counted_random import ordered_subset


def by_table(uniform, sizes):
    """Fisher-Yates with the whole table of each row."""
    rows, k = uniform.shape
    found = np.empty((rows, k), dtype=np.int64)
    for row in range(rows):
        table = list(range(max(int(sizes.max()), k)))
        for step in range(k):
            other = step + int(uniform[row, step] * max(sizes[row] - step, 1))
            table[step], table[other] = table[other], table[step]
        found[row] = np.minimum(table[:k], max(sizes[row] - 1, 0))
    return found


@pytest.mark.parametrize("k, largest", [(1, 1), (5, 5), (7, 3), (16, 17), (16, 600), (75, 80)])
def test_shuffles_are_those_with_a_table_of_all_places(k, largest):
    generator = np.random.default_rng(k)
    uniform, sizes = generator.random((300, k)), generator.integers(1, largest + 1, 300)
    found = ordered_subset(uniform, sizes)
    np.testing.assert_array_equal(found, by_table(uniform, sizes))
    assert found.flags.c_contiguous
