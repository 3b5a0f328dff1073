"""Chains of small steps written as one line of text, such as "power(0.5),l2"."""

from __future__ import annotations

import dataclasses
import re

from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message


def read_steps(spec: str, registry: Registry, chain: str, example: str) -> list:
    """The steps of `spec`: names of `registry` (dataclasses) separated by commas, arguments in brackets. "" is no step.

    chain, example   what messages call the whole, and a text that reads

    Raises FewshotError on an unknown step or argument (with the nearest names), on a value of the wrong kind and on text
    that does not read.
    """
    steps = []
    # A comma separates steps unless a bracket is open.
    for text in re.split(r",(?![^()]*\))", spec) if spec.strip() else []:
        match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
        if match is None:
            raise FewshotError(f"cannot read {text.strip()!r} in the {chain} {spec!r}; write e.g. {example!r}")
        steps.append(_make(registry[match[1]], match[1], match[2]))
    return steps


def write_step(name: str, step: object) -> str:
    """The canonical text of a step, all arguments written out."""
    written = ",".join(f"{key}={getattr(step, key)}" for key in _arguments(type(step)))
    return f"{name}({written})" if written else name


def _arguments(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a step that are written; "fitted" ones are not."""
    return {f.name: f for f in dataclasses.fields(cls) if "fitted" not in f.metadata}


def _make(cls: type, name: str, text: str | None) -> object:
    fields, given = _arguments(cls), {}
    for position, argument in enumerate(text.split(",") if text and text.strip() else []):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not equals:
            if position >= len(fields):
                count = {0: "no arguments", 1: "1 argument"}.get(len(fields), f"{len(fields)} arguments")
                raise FewshotError(f"{name} takes {count}{': ' if fields else ''}{', '.join(fields)}; got {text!r}")
            key, value = list(fields)[position], key
        if key not in fields:
            raise FewshotError(unknown_message(f"argument of {name}", key, list(fields)))
        if key in given:
            raise FewshotError(f"{name} got {key} twice in {text!r}")
        given[key] = _value(name, key, value, type(fields[key].default))
    return cls(**given)


def _value(name: str, key: str, text: str, kind: type) -> object:
    try:
        return kind(text)
    except ValueError:
        raise FewshotError(f"{name}: {key}={text!r} is not a {kind.__name__}") from None
