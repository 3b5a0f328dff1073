"""The command line: `fewshot COMMAND`. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fewshot import __version__
from fewshot.cli import convert, data, episodes, features, hyper_parameters, predict, results, sweep, train
from fewshot.cli import evaluate as evaluation
from fewshot.core.errors import FewshotError
from fewshot.core.plugins import load_file

_UsageError: Any = typer.BadParameter.__mro__[1]  # click's; newer versions of typer carry their own copy of click
_DEBUG, _QUIET, _LOAD = "--debug", "--quiet", "--load"


class _Stopped(Exception):
    """The user's interruption; not a KeyboardInterrupt, which typer would turn into a bare exit code."""


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped(*stop.args, getattr(stop, "signal", signal.SIGINT)) from stop


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, suggest_commands=True,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Few-shot learning: episodes, methods, and accuracy with intervals.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fewshot {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(context: typer.Context,
               version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                     help="show the version and exit")] = False,
               load: Annotated[list[Path] | None, typer.Option(_LOAD, metavar="FILE.py", help="run this file first, which "
                               "registers methods, backbones, data sets or protocols of your own; repeat for more")] = None,
               debug: Annotated[bool, typer.Option(_DEBUG, help="show the traceback of an error, with any command")] = False,
               quiet: Annotated[bool, typer.Option(_QUIET, help="no progress bars, with any command")] = False) -> None:
    for path in load or ():
        load_file(path)
    if quiet:
        context.with_resource(_without_bars())


app.command("list")(data.list_names)
app.command("eval")(evaluation.evaluate)
for command in (data.data, train.train, features.embed, features.join, results.compare, results.plan, results.table,
                results.report, hyper_parameters.tune, hyper_parameters.fit, predict.predict, convert.convert, sweep.sweep):
    app.command()(command)
app.add_typer(episodes.app, name="episodes")


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A mistake of the user is one line on stderr and exit code 2, not a traceback; an interruption is one
    line and 128 + the signal. Without arguments: the help."""
    arguments = _in_front(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: typer.secho(f"warning: {message}", fg="yellow", err=True)
        try:
            code = app(arguments or ["--help"], prog_name="fewshot", standalone_mode=False)
        except _Stopped as stop:
            *text, number = stop.args
            _fail(text[0] if text else "interrupted; what was finished is kept", 128 + number)
        except _UsageError as error:
            _fail(f"error: {error.format_message()}")
        except (FewshotError, OSError) as error:
            if _DEBUG in arguments:
                traceback.print_exc()
            # An OSError is a full disk or a folder without permission.
            remedy = "; choose another place, free disk space or change the permissions" * isinstance(error, OSError)
            _fail(f"error: {error}{remedy}")
    sys.exit(code if isinstance(code, int) else 0)


def _in_front(arguments: list[str]) -> list[str]:
    """Options of all commands belong before the command, but one adds them at the end of the line that failed."""
    front: list[str] = []
    rest: list[str] = []
    given = iter(arguments)
    for text in given:
        if text == _LOAD:
            front += [text, *(value for value in [next(given, None)] if value is not None)]
        else:
            (front if text in (_DEBUG, _QUIET) or text.startswith(f"{_LOAD}=") else rest).append(text)
    return front + rest


def _fail(message: str, code: int = 2) -> NoReturn:
    if train.is_first_process():
        typer.secho(message, fg="red", err=True)
    sys.exit(code)


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


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
