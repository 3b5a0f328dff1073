"""The commands together, and what every one of them takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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
from fewshot.cli.process import Stopped

DEBUG, QUIET, LOAD = "--debug", "--quiet", "--load"


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(*stop.args, getattr(stop, "signal", signal.SIGINT)) from stop


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
               load: Annotated[list[Path] | None, typer.Option(LOAD, metavar="FILE.py", help="run this file first, which "
                               "registers methods, backbones, data sets or protocols of your own; repeat for more")] = None,
               debug: Annotated[bool, typer.Option(DEBUG, help="show the traceback of an error, with any command")] = False,
               quiet: Annotated[bool, typer.Option(QUIET, help="no progress bars and no line on the data, with any "
                                                   "command")] = False) -> None:
    if quiet:
        context.with_resource(_without_bars())


app.command("list")(data.list_names)
app.command("eval")(evaluation.evaluate)
for command in (data.data, train.train, features.embed, features.join, results.compare, results.plan, results.table,
                results.report, hyper_parameters.tune, hyper_parameters.fit, predict.predict, predict.decide, predict.export,
                convert.convert, sweep.sweep, cache.cache):
    app.command()(command)
app.add_typer(episodes.app, name="episodes")
app.add_typer(classifier.app, name="classifier")


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
