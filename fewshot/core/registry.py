"""A name -> object table that refuses duplicates and suggests the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fewshot.core.errors import FewshotError
from fewshot.core.plugins import load_plugins

T = TypeVar("T")


class UnknownName(FewshotError):
    """A name that is not registered."""


def nearest(name: object, known: list[str]) -> list[str]:
    """Up to three names of `known` that look like `name`."""
    folded = {k.lower().replace("-", "_"): k for k in known}
    hits = difflib.get_close_matches(str(name).lower().replace("-", "_"), folded, n=3, cutoff=0.5)
    return [folded[hit] for hit in hits]


def unknown_message(kind: str, name: object, known: list[str]) -> str:
    hint = nearest(name, known)
    if hint:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, hint))}?"
    return f"unknown {kind} {name!r}; known: {', '.join(sorted(known)) or 'none'}"


class Registry(Generic[T]):
    """Names for one kind of thing ("method", "backbone", "dataset").

    `@registry.register("name")` on a class or function adds it; a second use of a name raises. What installed packages
    register is found, too: they are imported when a name is not known here, and for a list of all.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(item: T) -> T:
            if name in self._items:
                raise FewshotError(f"{self.kind} {name!r} is already registered by {self._items[name]!r}")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise UnknownName(f"{unknown_message(self.kind, name, list(self._items))} (one of your own is registered by a "
                              "package with an entry point, or a file: --load FILE.py)")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
