"""The commands that read stored results: `fewshot compare`, `plan`, `table` and `report`. Nothing is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import options_from_types
from fewshot.cli.request import Places
from fewshot.core.errors import FewshotError

if TYPE_CHECKING:
    from fewshot.evaluation.result import Result


@options_from_types(left_out=("data_root",))
def compare(results: Annotated[list[str], typer.Argument(help="two or more result folders or keys")],
            ranks: Annotated[bool, typer.Option("--ranks", help="only the mean ranks; results may be on several "
                                                "protocols, the same methods on each")] = False,
            *, places: Places) -> None:
    """Paired differences between results on the same episodes, with corrected p-values, and the ranks of three or more."""
    from fewshot.reporting.accuracy_tables import comparison_table
    from fewshot.reporting.metric_tables import pairs_table, ranks_table

    found = _results(results, places.runs, least=2)
    if ranks:
        ranks_table(found).print()
        return
    comparison_table(found).print()
    pairs_table(found).print()
    if len(found) > 2:
        ranks_table(found).print()


@options_from_types(left_out=("data_root",))
def plan(results: Annotated[list[str], typer.Argument(help="two results on the same episodes, as a pilot: folders or keys")],
         difference: Annotated[float, typer.Option(help="difference to see, in percentage points")],
         power: Annotated[float, typer.Option(help="probability of seeing it")] = 0.8, *, places: Places) -> None:
    """How many episodes a comparison of two methods needs, paired and unpaired, from a pilot."""
    from fewshot.evaluation.result import compare as paired
    from fewshot.statistics import plan_episodes

    found = _results(results, places.runs, least=2)
    if len(found) != 2:
        raise FewshotError(f"{len(found)} results; a plan is for two")
    a, b = found
    paired(a, b)  # refuses results on different episodes
    made = plan_episodes(a.correct, b.correct, difference / 100, power)
    typer.echo(f"{made.paired} episodes show a difference of {difference:g} percentage points between {a.record.method} and "
               f"{b.record.method} ({a.protocol}) with probability {power:g} (paired t-test, level 0.05).")
    typer.echo(f"On different episodes each would need {made.unpaired}: {made.factor:.1f} times as many (correlation over "
               f"the {made.pilot} episodes of the pilot: {made.correlation:.2f}).")
    typer.echo("More episodes narrow what episode sampling adds; the choice of the novel classes stays.")


@options_from_types()
def table(results: Annotated[list[str] | None, typer.Argument(help="result folders or keys; default: all. Or one file "
                                                              "of experiments/: its results beside published ones")] = None,
          interval: Annotated[str, typer.Option(help="episodes, classes (the choice of novel classes, too), or bootstrap "
                                                     "(over episodes)")] = "episodes",
          metrics: Annotated[bool, typer.Option("--metrics", help="likelihood, calibration, worst episodes")] = False,
          over_seeds: Annotated[bool, typer.Option("--over-seeds", help="mean and spread of results that differ only in "
                                                   "their weights")] = False,
          form: Annotated[str, typer.Option("--format", help="terminal, markdown, csv, json or latex")] = "terminal", *,
          places: Places) -> None:
    """One table of stored results. Nothing is evaluated."""
    from fewshot.core.registry import unknown_message
    from fewshot.reporting.accuracy_tables import results_table
    from fewshot.reporting.metric_tables import metrics_table, seeds_table

    if metrics + over_seeds + (interval != "episodes") > 1:
        raise FewshotError("--metrics, --over-seeds and --interval are three tables; ask for one at a time")
    plain = False  # a cell is one run
    if results and results[0].endswith(".py"):
        from fewshot.evaluation.store import experiment_store
        from fewshot.experiments.published import load_experiment, published_table

        if len(results) > 1:
            raise FewshotError(f"{len(results)} arguments beside the experiment {results[0]}; give one experiment alone")
        made = published_table(load_experiment(results[0]), experiment_store(results[0], places.runs), places.data_root)
    elif metrics:
        made = metrics_table(_results(results, places.runs))
    elif over_seeds:
        made = seeds_table(_results(results, places.runs))
    else:
        made, plain = results_table(_results(results, places.runs), interval=interval), True
    forms = {"markdown": made.to_markdown, "csv": made.to_csv, "json": made.to_json, "latex": made.to_latex}
    if form not in ("terminal", *forms):
        raise FewshotError(unknown_message("format", form, ["terminal", *forms]))
    if form == "terminal":
        made.print(keys=plain)
    else:
        typer.echo(forms[form](), nl=False)


@options_from_types()
def report(results: Annotated[list[str] | None, typer.Argument(help="result folders or keys; default: all")] = None,
           out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
           title: Annotated[str, typer.Option(help="heading of the page")] = "Few-shot results",
           images: Annotated[bool, typer.Option(help="draw episodes, where the images are there")] = True,
           weights: Annotated[list[Path] | None, typer.Option(help="weights file of these results, to draw their episodes "
                                                              "and for the commands; repeat for more")] = None, *,
           places: Places) -> None:
    """One self-contained HTML page of stored results. Nothing is evaluated but two episodes a data set, to draw them."""
    from fewshot.backbones import read_weights
    from fewshot.cli.eval_text import eval_command
    from fewshot.core.files import check_file_to_write
    from fewshot.features.source import FeatureSource
    from fewshot.reporting.measure_figures import sweeps
    from fewshot.reporting.page import write_report

    check_file_to_write(out)
    found = _results(results, places.runs)
    files = {read_weights(path)[1]["weights_id"]: path for path in weights or []}
    path = write_report(out, title=title, results=found, figures=sweeps(found), weights=files,
                        commands=[eval_command(r, places.data_root, files) for r in found],
                        source=FeatureSource(places.data_root, places.runs / "cache") if images else None)
    typer.echo(f"wrote {path}")


def _results(keys: list[str] | None, runs: Path, least: int = 1) -> list[Result]:
    """The named results, all of `runs` without names."""
    from fewshot.evaluation.store import Store

    store = Store(runs)
    found = [store.read(_folder(key, runs)) for key in keys] if keys else list(store)
    if len(found) < least:
        have = f"{len(found)} result{'' if len(found) == 1 else 's'} {'given' if keys else f'in {runs}'}"
        raise FewshotError(f"{have}; this needs at least {least}: run `fewshot eval` first, or point --runs at the folder "
                           "that holds them")
    return found


def _folder(key: str, runs: Path) -> Path:
    """The folder of a result, given as a path, a key or the start of one."""
    if Path(key).is_dir():
        return Path(key)
    found = [path.parent for path in runs.glob("*/run.json") if path.parent.name.startswith(key)]
    if len(found) != 1:
        known = ", ".join(sorted(path.name for path in found)) if found else f"{len(list(runs.glob('*/run.json')))} others"
        raise FewshotError(f"{len(found)} results in {runs} begin with {key!r} ({known}); `fewshot table` "
                           "prints the keys below its table")
    return found[0]
