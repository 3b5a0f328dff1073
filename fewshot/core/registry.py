"""A name -> object table that refuses duplicates and suggests the nearest names."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
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

    `@registry.register("name")` on a class or function adds it; a second use of a name raises.

    package   whose modules register things when they are imported. For a name that is not known yet the module of that name
              is imported, then the others; for a list of all, all are. What installed packages register is found last
    """

    def __init__(self, kind: str, package: str = ""):
        self.kind, self.package = kind, package
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
        if name not in self._items and name in self._modules:
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._items:
            self._import_all()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._import_all()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        self._import_all()
        return len(self._items)

    @functools.cached_property
    def _modules(self) -> tuple[str, ...]:
        """Names of the modules of the package."""
        paths = importlib.import_module(self.package).__path__ if self.package else ()
        return tuple(module.name for module in pkgutil.iter_modules(paths))

    def _import_all(self) -> None:
        for name in self._modules:
            importlib.import_module(f"{self.package}.{name}")
        load_plugins()
