"""Arrays and tables as others hand them over, as tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewshot.core.errors import FewshotError


def as_array(name: str, given: Any) -> np.ndarray:
    """`given` as an array that torch can take: numbers, in this machine's byte order, no axis running backwards. Copied only
    where it is not so already. Raises FewshotError naming `name` for rows of different lengths and values of mixed kinds."""
    try:
        array = np.asarray(given)
        if array.dtype == object:  # nullable columns of a data frame, numbers among other things
            found = np.asarray(array.tolist())
            array = found if found.shape == array.shape else array
    except (ValueError, TypeError) as error:
        raise FewshotError(f"{name} cannot be made an array ({error}); pass one array or tensor") from None
    if array.dtype.kind not in "biufUS":
        raise FewshotError(f"{name} has dtype {array.dtype}; pass numbers without gaps, all of one kind")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array) if any(step < 0 for step in array.strides) else array


def as_tensor(name: str, given: Any) -> Tensor:
    """`given`, a tensor or anything `as_array` takes that holds numbers, as a tensor, sharing memory where that can be.
    Memory that is read-only is shared, too: banks are never written to."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, (list, tuple)) and given and all(isinstance(row, Tensor) for row in given):
        try:
            return torch.stack(tuple(given))
        except RuntimeError as error:
            raise FewshotError(f"{name} cannot be made one tensor ({error}); pass one array or tensor") from None
    array = as_array(name, given)
    if array.dtype.kind in "US":
        raise FewshotError(f"{name} holds texts ({array.dtype}); pass numbers")
    if array.dtype == np.longdouble:  # torch has nothing longer than float64
        array = array.astype(np.float64)
    plain = isinstance(given, (list, tuple)) and not any(isinstance(row, np.ndarray) for row in given)
    if plain and array.dtype == np.float64:
        array = array.astype(np.float32)  # Python's numbers have no precision of their own: torch's default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
