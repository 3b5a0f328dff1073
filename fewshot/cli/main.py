"""The entry point of the command line: `fewshot COMMAND`. Heavy packages are imported inside the commands, so that --help is
quick."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import typer

from fewshot.cli.messages import as_options
from fewshot.cli.process import Stopped, is_first_process
from fewshot.core.errors import FewshotError, with_remedy
from fewshot.core.plugins import load_file

_UsageError: Any = typer.BadParameter.__mro__[1]  # click's; newer versions of typer carry their own copy of click
_DEBUG, _QUIET, _LOAD = "--debug", "--quiet", "--load"


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A mistake of the user is one line on stderr and exit code 2, not a traceback; an interruption is one
    line and 128 + the signal. Without arguments: the help."""
    front, rest = _sorted(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings(), _terminated_as_interrupted():
        warnings.showwarning = lambda message, *_: typer.secho(f"warning: {message}", fg="yellow", err=True)
        command = None
        try:
            for option, path in zip(front, front[1:], strict=False):
                if option == _LOAD:
                    load_file(path)
            # Now, because a protocol of the user's own brings options of commands.
            from fewshot.cli.app import command_of
            from fewshot.cli.options import refuse_empty

            command = command_of(rest)
            refuse_empty(command, rest)
            code = command([*front, *rest] or ["--help"], prog_name="fewshot", standalone_mode=False)
        except Stopped as stop:
            *text, number = stop.args
            _fail(text[0] if text else "interrupted; what was finished is kept", 128 + number)
        except _UsageError as error:
            _fail(f"error: {error.format_message()}")
        except (FewshotError, OSError) as error:
            if _DEBUG in front:
                traceback.print_exc()
            told = with_remedy(error) if isinstance(error, OSError) else str(error)
            _fail(f"error: {as_options(told, command, rest)}")
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is finished is kept, and no temporary file stays behind."""
    def stop(number: int, _: object) -> NoReturn:
        interruption = KeyboardInterrupt()
        interruption.signal = number  # type: ignore[attr-defined]
        raise interruption

    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _sorted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(options of all commands, the rest): they belong before the command, but one adds them at the end of the line that
    failed."""
    front: list[str] = []
    rest: list[str] = []
    given = iter(arguments)
    for text in given:
        option, equals, value = text.partition("=")
        if option == _LOAD:
            front += [option, value if equals else next(given, "")]
        else:
            (front if text in (_DEBUG, _QUIET) else rest).append(text)
    return front, rest


def _fail(message: str, code: int = 2) -> NoReturn:
    if is_first_process():
        typer.secho(message, fg="red", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
