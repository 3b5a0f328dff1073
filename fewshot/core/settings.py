"""Fields of a specification that say everything about themselves once: their check, help, option, and place in figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen_dict
from fewshot.core.registry import unknown_message

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Check = Callable[[str, Any], Any]  # (name, value) -> the one value that stands for it, or FewshotError


@dataclass(frozen=True)
class Setting:
    """What is known of one field.

    help      for a person, one line
    check     equal meanings become equal values (5.0 is 5 ways), wrong ones raise
    flag      its option, where that is not the name; metavar: how its value is shown there; envvar: read without it
    several   whether `fewshot eval` takes a list of values
    axis      label of the axis of a figure, for what one draws accuracy against
    named     whether the text of the protocol names it ("5-way 1-shot")
    shown     whether labels of results name it wherever it varies
    unused    of a specification: whether the field changes nothing there; it then has its default
    later     left out of a result's key at its default, as it did not exist when the first results were stored
    """

    help: str
    check: Check
    flag: str = ""
    metavar: str | None = None
    envvar: str | None = None
    several: bool = False
    axis: str = ""
    named: bool = False
    shown: bool = False
    unused: Callable[[Any], bool] = lambda spec: False
    later: bool = False

    def option(self, name: str) -> str:
        """`--name` as the command line calls it."""
        return self.flag or f"--{name.replace('_', '-')}"


def setting(default: object, help: str, check: Check, **facts: Any) -> Any:
    """A dataclass field with a `Setting`."""
    known = {"setting": Setting(help, check, **facts)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: FrozenDict(default), metadata=known)
    return dataclasses.field(default=default, metadata=known)


def settings_of(spec: DataclassInstance | type[DataclassInstance]) -> dict[str, Setting]:
    """Name -> Setting of the fields of a dataclass (or an instance) that have one."""
    return {f.name: f.metadata["setting"] for f in dataclasses.fields(spec) if "setting" in f.metadata}


def default_of(spec: DataclassInstance | type[DataclassInstance], name: str) -> Any:
    """The default of one field."""
    field = next(f for f in dataclasses.fields(spec) if f.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def settle(spec: DataclassInstance) -> None:
    """Check every field of a frozen dataclass and put the canonical value in its place; for its `__post_init__`."""
    for name, known in settings_of(spec).items():
        object.__setattr__(spec, name, known.check(name, getattr(spec, name)))
    for name, known in settings_of(spec).items():
        if known.unused(spec):
            object.__setattr__(spec, name, default_of(spec, name))


def whole(least: int | None = None, most: int | None = None, or_none: bool = False) -> Check:
    """Integers from `least` to `most`; 5.0 is one."""
    def check(name: str, value: Any) -> int | None:
        if or_none and value is None:
            return None
        return check_integer(name, int(value) if isinstance(value, float) and value.is_integer() else value, least, most)

    return check


def real(low: float, low_allowed: bool = True) -> Check:
    """Finite numbers from `low` on."""
    return lambda name, value: check_number(name, value, low, low_allowed=low_allowed)


def one_of(choices: Collection[str], kind: str = "") -> Check:
    """One of some words."""
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise FewshotError(unknown_message(kind or name.replace("_", " "), value, list(choices)))
        return value

    return check


def text(or_none: bool = False) -> Check:
    """A text, or what stands for one as paths do."""
    def check(name: str, value: Any) -> str | None:
        if or_none and value is None:
            return None
        if not hasattr(value, "__fspath__") and not isinstance(value, str):
            raise FewshotError(f"{name}={value!r}; expected a text")
        return str(value)

    return check


def anything(name: str, value: Any) -> Any:
    """For fields that are checked where they are used."""
    return value


def options(name: str, value: Any) -> FrozenDict:
    """Keyword arguments for something else, which checks them."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FewshotError(f"{name}={value!r}; pass a dictionary, name -> value")
    return frozen_dict(value)
