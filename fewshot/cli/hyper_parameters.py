"""The commands that choose or learn hyper-parameters on validation classes: `fewshot tune` and `fewshot fit`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewshot.cli.options import Values, options_from_types
from fewshot.cli.request import Banks, Places, data_of, one_run, say_what_is_there
from fewshot.cli.values import literal, named, value_lists
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.episodes.protocol import Protocol
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.run import Run
from fewshot.evaluation.work import Work
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.tuning.search import Range


@dataclass
class Search:
    """How values are searched."""

    grid: list[str] | None = setting(None, "values to try; repeat for more parameters, all combinations are tried", anything,
                                     metavar="NAME=V,V,..")
    random: int | None = setting(None, "this many random draws, not all combinations", anything)
    ranges: list[str] | None = setting(None, "range of a parameter in a random search", anything, flag="--range",
                                       metavar="NAME=LOW:HIGH[:log]")
    search_seed: int = setting(0, "seed of the random draws", anything)
    placement: bool = setting(False, "search which blocks of the backbone to adapt, in rounds (finetune, pmf, film, lora, "
                              "tsa)", anything, flag="--placement")


@dataclass
class Learning:
    """How values are learned."""

    epochs: int | None = setting(None, "passes over the episodes (default: the paper's)", anything)
    lr: float | None = setting(None, "step size of Adam (default: the paper's)", anything)
    halve_every: int | None = setting(None, "epochs between halvings of lr (default: the paper's)", anything)
    batch: int | None = setting(None, "episodes a step (default: the paper's)", anything)
    loss: str = setting("cross_entropy", "cross_entropy or official_double_softmax", anything)
    out: Path | None = setting(None, "file to write (default: RUNS/fitted/....safetensors)", anything)


_SHARED: dict[str, Any] = {"left_out": ("workers", "shard", "progress", "open_classes", "open_queries"), "split": "val",
                           "device": "auto"}


@options_from_types(**_SHARED, episodes=2000)
def tune(context: typer.Context, spec: Values[MethodSpec], subject: Values[Subject], banks: Banks, search: Search,
         protocol: Values[Protocol], run: Values[Run], work: Values[Work], places: Places) -> None:
    """Choose hyper-parameters on validation classes: grid or random search, the same episodes for every candidate.

    Results and a record of the search are kept in RUNS/tune.
    """
    from fewshot.evaluation.store import Store
    from fewshot.features.source import FeatureSource
    from fewshot.reporting.search_table import search_table
    from fewshot.tuning.search import check_validation
    from fewshot.tuning.search import tune as search_values

    data = data_of(context, subject, banks, places)
    asked = one_run(context, data, spec, protocol, run)
    ranges = {name: _range(name, text) for name, text in named(search.ranges)}
    check_validation(asked, data.bank)
    source = FeatureSource(data.root, places.runs / "cache", True, work["device"])
    say_what_is_there(context, [source.images(asked.subject) if data.bank is None else data.bank])
    how = {"store": Store(places.runs / "tune"), "source": source, "progress": True, **work}
    if search.placement:
        from fewshot.tuning.blocks import tune_placement

        if search.grid or ranges or search.random or banks.features:
            raise FewshotError("--placement searches blocks of a backbone on images: leave out --grid, --range, --random "
                               "and --features")
        rounds = tune_placement(asked, **how)
        for found in rounds:
            search_table(found).print()
    else:
        found = search_values(asked, value_lists(search.grid), ranges=ranges, samples=search.random, seed=search.search_seed,
                              bank=data.bank, base_bank=data.base_bank, **how)
        search_table(found).print()
    settings = [word for name, value in found.chosen.items() for word in ("--set", shlex.quote(f"{name}={value}"))]
    typer.echo(f"recorded in {found.record}")
    typer.echo(" ".join([f"chosen: --method {asked.method}", *settings]))


@options_from_types(**_SHARED, episodes=1000, method="unem_gaussian")
def fit(context: typer.Context, spec: Values[MethodSpec], subject: Values[Subject], banks: Banks, learning: Learning,
        protocol: Values[Protocol], run: Values[Run], work: Values[Work], places: Places) -> None:
    """Learn the hyper-parameters of an unrolled method on validation episodes and keep them in a file."""
    from fewshot.core.bars import tqdm
    from fewshot.features.source import FeatureSource
    from fewshot.tuning.search import check_validation, fit_run
    from fewshot.tuning.unrolled import save_fitted

    data = data_of(context, subject, banks, places)
    asked, out = one_run(context, data, spec, protocol, run), learning.out
    if out is None:
        words = (asked.method, *data.names, f"{asked.ways}w{asked.shots}s", asked.query_distribution)
        out = places.runs / "fitted" / (re.sub(r"[^\w.-]+", "_", "_".join(words)) + ".safetensors")
    check_validation(asked, data.bank)
    source = FeatureSource(data.root, places.runs / "cache", device=work["device"])
    say_what_is_there(context, [source.images(asked.subject) if data.bank is None else data.bank])
    with tqdm(desc=f"{asked.method} {asked.protocol}", unit="epoch", leave=False) as bar:
        def show(epoch: int, value: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}")

        found = fit_run(asked, bank=data.bank, base_bank=data.base_bank, source=source,
                        epochs=learning.epochs, lr=learning.lr, halve_every=learning.halve_every, batch=learning.batch,
                        loss=learning.loss, progress_epochs=show, **work)
    typer.echo(f"loss {found.history[0]:.4f} before, {found.history[found.best_epoch]:.4f} after epoch {found.best_epoch} "
               f"of {len(found.history) - 1}")
    typer.echo(f"wrote {save_fitted(out, found)}; evaluate it on test classes: fewshot eval --method {asked.method} "
               f"--learned {shlex.quote(str(out))} with the same data set, backbone, ways and shots")


def _range(name: str, text: str) -> Range:
    from fewshot.tuning.search import Range

    low, _, rest = text.partition(":")
    high, _, kind = rest.partition(":")
    ends = literal(low), literal(high)
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends) or kind not in ("", "log"):
        raise FewshotError(f"--range {name}={text}; expected LOW:HIGH or LOW:HIGH:log with numbers, e.g. 1:100:log")
    return Range(*ends, log=kind == "log")
