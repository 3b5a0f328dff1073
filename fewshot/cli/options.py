"""Options of commands, made from the fields of the types that they fill."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict
from fewshot.core.settings import default_of, settings_of
from fewshot.episodes.protocol import PROTOCOLS, EpisodicProtocol, Protocol

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class Values(dict, Generic[T]):
    """What was given for the fields of T, as the options have them: name -> value."""


def method_names(incomplete: str) -> list[str]:
    """What the shell offers for a method, also behind a comma. Read from the text of their files: importing them would take
    seconds at every press of the key."""
    before, comma, start = incomplete.rpartition(",")
    files = Path(__file__).parents[1].joinpath("methods").glob("*.py")
    names = (name for file in files for name in re.findall(r'^@METHODS\.register\("(\w+)"\)', file.read_text("utf-8"), re.M))
    return sorted(f"{before}{comma}{name}" for name in names if name.startswith(start))


def options_from_types(lists: bool = False, left_out: tuple[str, ...] = (),
                       **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command whose parameters are annotated with `Values[T]`, T a type with settings, gets an option for each setting of
    T, and what was given for them. A parameter annotated with such a type itself gets an instance of it.

    lists      settings that may be several take lists separated by commas
    left_out   settings without an option here;  defaults: of options, where they are not those of the type

    The options are made by `make_options`: those of all commands together take longer than the start of one.
    """
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        groups: dict[str, tuple[type[DataclassInstance], bool, list[str]]] = {}

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            filled: dict[str, Any] = {}
            for name, (cls, raw, fields) in groups.items():
                values = {field: given.pop(field) for field in fields}
                filled[name] = Values(values) if raw else cls(**values)
            return function(**given, **filled)

        def options() -> list[inspect.Parameter]:
            return _parameters(function, groups, lists, left_out, defaults)

        del command.__wrapped__
        _take(command, [])
        command.options = options  # type: ignore[attr-defined]
        return command

    return decorate


def make_options(command: Callable[..., Any]) -> None:
    """Give a command the options that `options_from_types` promised; others have theirs."""
    if hasattr(command, "options"):
        _take(command, command.options())
        del command.options


def _take(command: Any, parameters: list[inspect.Parameter]) -> None:
    # Without defaults first: Python wants it of a signature, though all are keywords.
    ordered = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(ordered)
    command.__annotations__ = {p.name: p.annotation for p in ordered}


def _parameters(function: Callable[..., Any], groups: dict[str, tuple[type[DataclassInstance], bool, list[str]]],
                lists: bool, left_out: tuple[str, ...], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Of the command; `groups` gets what each of the types takes: (type, whether as `Values`, names)."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        cls: type = typing.get_args(hint)[0] if typing.get_origin(hint) is Values else hint
        if not dataclasses.is_dataclass(cls):
            found.append(parameter.replace(annotation=hint, kind=parameter.KEYWORD_ONLY))
            continue
        # Protocols may share a setting: it is one option, as the first of them has it.
        owners = {field: owner for owner in reversed(_owners(cls)) for field in settings_of(owner)}
        made = [_option(owner, field, lists, defaults) for owner in _owners(cls) for field in settings_of(owner)
                if field not in left_out and owners[field] is owner]
        made += [_PROTOCOL] if cls is Protocol and len(PROTOCOLS) > 1 else []
        groups[name] = cls, cls is not hint, [option.name for option in made]
        found += made
    return found


_PROTOCOL = inspect.Parameter(
    "protocol", inspect.Parameter.KEYWORD_ONLY, default=EpisodicProtocol.name,
    annotation=Annotated[str, typer.Option(help="which episodes, see `fewshot list protocols`")])


def _owners(cls: type[DataclassInstance]) -> list[type[DataclassInstance]]:
    """The types whose settings are meant: of `Protocol` all registered ones."""
    return [PROTOCOLS[name] for name in PROTOCOLS] if cls is Protocol else [cls]


_hints = functools.cache(typing.get_type_hints)


def _option(cls: type[DataclassInstance], name: str, lists: bool, defaults: Mapping[str, Any]) -> inspect.Parameter:
    known, hint = settings_of(cls)[name], _hints(cls)[name]
    default = defaults.get(name, default_of(cls, name))
    help_text, shown = known.help, default is not None
    if hint is FrozenDict:
        hint, default, shown = list[str] | None, None, False
    elif lists and known.several:
        hint, help_text = (str if default is not None else str | None), f"{known.help}, comma-separated"
        default = default if default is None or isinstance(default, str) else f"{default:g}"
    elif typing.get_origin(hint) is tuple or (isinstance(hint, types.UnionType) and any(
            typing.get_origin(kind) is tuple for kind in typing.get_args(hint))):
        hint = str | None
    elif default is None and not isinstance(hint, types.UnionType):
        hint = hint | None
    option = typer.Option(*((known.flag,) if known.flag else ()), help=help_text, metavar=known.metavar, envvar=known.envvar,
                          show_default=shown, autocompletion=method_names if name == "method" else None)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def given(context: typer.Context, name: str) -> bool:
    """Whether the option of this parameter stands on the command line."""
    return name in context.params and context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]


def refuse_given(context: typer.Context, names: typing.Iterable[str], why: str) -> None:
    """Options that would have no effect are refused."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    found = [flags[name] for name in names if name in flags and given(context, name)]
    if found:
        raise FewshotError(f"{', '.join(found)} {why}; leave it out")


def refuse_empty(app: Any, arguments: Sequence[str]) -> None:
    """An empty text, as of a variable that is not set, would be the present folder for a path, and puzzling elsewhere.

    app   the command of all commands
    """
    command = app
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    flags = {flag for parameter in command.params if parameter.default != "" for flag in parameter.opts}
    for text, following in itertools.zip_longest(arguments, arguments[1:]):
        flag, equals, value = text.partition("=")
        if flag in flags and (value if equals else following) == "":
            raise FewshotError(f"{flag}='' is empty; give a value, or leave it out")
