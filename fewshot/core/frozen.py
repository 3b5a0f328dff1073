"""Plain values that stay as they are: dictionaries that can be hashed, all the way down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn


class FrozenDict(dict):
    """A dictionary that cannot be changed and has a hash; equal to any dictionary with the same items."""

    def _refuse(self, *unused: object, **unused_too: object) -> NoReturn:
        raise TypeError("these settings cannot be changed; make new ones, e.g. with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple:
        return type(self), (dict(self),)


def frozen(value: object) -> object:
    """`value` as it can be hashed and written to JSON: lists as tuples, dictionaries as FrozenDict, NumPy's and torch's
    numbers and arrays as Python's, all the way down."""
    if hasattr(value, "tolist"):  # of NumPy and torch, without importing either
        value = value.tolist()
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


def frozen_dict(values: Mapping | Iterable = ()) -> FrozenDict:
    """A FrozenDict of `values`, frozen all the way down."""
    return FrozenDict({key: frozen(item) for key, item in dict(values).items()})


def plain(value: object) -> Any:
    """`value` as JSON reads it: lists, dictionaries and Python's numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
