"""The commands together, and what every one of them takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fewshot import __version__
from fewshot.cli import (
    cache,
    classifier,
    convert,
    data,
    episodes,
    features,
    hyper_parameters,
    predict,
    results,
    sweep,
    train,
)
from fewshot.cli import evaluate as evaluation
from fewshot.cli.options import make_options
from fewshot.cli.process import Stopped

DEBUG, QUIET, LOAD = "--debug", "--quiet", "--load"


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(*stop.args, getattr(stop, "signal", signal.SIGINT)) from stop


_app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, suggest_commands=True,
                   context_settings={"help_option_names": ["-h", "--help"]},
                   help="Few-shot learning: episodes, methods, and accuracy with intervals.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fewshot {__version__}")
        raise typer.Exit


@_app.callback()
def everywhere(context: typer.Context,
               version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                     help="show the version and exit")] = False,
               load: Annotated[list[Path] | None, typer.Option(LOAD, metavar="FILE.py", help="run this file first, which "
                               "registers methods, backbones, data sets or protocols of your own; repeat for more")] = None,
               debug: Annotated[bool, typer.Option(DEBUG, help="show the traceback of an error, with any command")] = False,
               quiet: Annotated[bool, typer.Option(QUIET, help="no progress bars and no line on the data, with any "
                                                   "command")] = False) -> None:
    if quiet:
        context.with_resource(_without_bars())


_app.command("list")(data.list_names)
_app.command("eval")(evaluation.evaluate)
for command in (data.data, train.train, features.embed, features.join, results.compare, results.plan, results.table,
                results.report, hyper_parameters.tune, hyper_parameters.fit, predict.predict, predict.decide, predict.export,
                convert.convert, sweep.sweep, cache.cache):
    _app.command()(command)
_app.add_typer(episodes.app, name="episodes")
_app.add_typer(classifier.app, name="classifier")


def command_of(arguments: Sequence[str]) -> Any:
    """The command of all commands, of which those that `arguments` name have their options: making all takes as long as the
    help of all. The shell asks for completions by an environment variable; they may be of any."""
    word = next((text for text in arguments if not text.startswith("-")), None)
    for name, command in _commands():
        if name == word or "_FEWSHOT_COMPLETE" in os.environ:
            make_options(command)
    return typer.main.get_command(_app)


def _commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """(first word, function) of each."""
    groups = [(group.name, group.typer_instance) for group in _app.registered_groups]
    for first, part in [(None, _app), *groups]:
        for info in part.registered_commands if part else ():
            assert info.callback is not None
            yield str(first or info.name or info.callback.__name__), info.callback


def __getattr__(name: str) -> Any:
    """`app`: all commands, with all options."""
    if name != "app":
        raise AttributeError(name)
    for _, command in _commands():
        make_options(command)
    return _app


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bar of any package, whoever asks for one."""
    from tqdm import tqdm

    original = tqdm.__init__
    tqdm.__init__ = lambda bar, *arguments, **options: original(bar, *arguments, **{**options, "disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = original
