"""How the texts of options are read."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from fewshot.core.errors import FewshotError


def pairs(items: Sequence[str] | None) -> dict[str, Any]:
    """`["temperature=10", "norm=l2n"]` -> {"temperature": 10, "norm": "l2n"}."""
    return {name: literal(text) for name, text in named(items)}


def value_lists(items: Sequence[str] | None) -> dict[str, list]:
    """`["scale=5,10", "norm=l2n,un"]` -> {"scale": [5, 10], "norm": ["l2n", "un"]}; commas in brackets separate nothing."""
    return {name: [literal(part.strip()) for part in re.split(r",(?![^()\[\]]*[)\]])", text) if part.strip()]
            for name, text in named(items)}


def named(items: Sequence[str] | None) -> list[tuple[str, str]]:
    """(name, text) of every NAME=TEXT; raises FewshotError for anything else and for a name that comes twice."""
    found: dict[str, str] = {}
    for item in items or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise FewshotError(f"{item!r} is not NAME=VALUE")
        if name in found:
            raise FewshotError(f"{name} is given twice: {found[name]} and {text}")
        found[name] = text
    return list(found.items())


def literal(text: str) -> Any:
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def words(text: str) -> list[str]:
    """The parts of a list separated by commas, which must not be empty."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise FewshotError(f"{text!r} is an empty list; give one value, or several separated by commas")
    return found


def listed(option: str, text: str, kind: type) -> list[Any]:
    """The values of a list separated by commas, each of `kind` (int, float or str)."""
    read: Callable[[str], Any] = kind
    try:
        return [read(part) for part in words(text)]
    except ValueError:
        what, example = ("integers", "1,5") if kind is int else ("numbers", "0.5,2")
        raise FewshotError(f"{option}={text!r}; expected {what} separated by commas, e.g. {example}") from None


def shard_of(text: str | None) -> tuple[int, int] | None:
    """`1/4` -> (1, 4)."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not int(parts[0]) < int(parts[1]):
        raise FewshotError(f"--shard={text!r}; expected I/N with I from 0 to N-1, e.g. 0/4")
    return int(parts[0]), int(parts[1])
