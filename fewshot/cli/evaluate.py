"""`fewshot eval`: accuracy of methods over episodes."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from fewshot.cli.options import Values, options_from_types, refuse_given
from fewshot.cli.request import Banks, Data, Places, data_of, fields_of_episodes, lists_of, runs_of, say_what_is_there
from fewshot.cli.values import shard_of, words
from fewshot.core.errors import FewshotError
from fewshot.core.settings import anything, setting
from fewshot.episodes.protocol import Protocol, protocol_settings
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.run import Run
from fewshot.evaluation.work import Work
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.evaluation.result import Result
    from fewshot.features.source import FeatureSource


@dataclass
class Asked:
    """What is measured and shown beside accuracy."""

    learned: Path | None = setting(None, "values learned by `fewshot fit`", anything)
    episode_file: Path | None = setting(None, "episodes from `fewshot episodes save`; they set ways, shots and the rest of "
                                        "the protocol", anything)
    metrics: bool = setting(False, "also likelihood, Brier score, calibration error", anything, flag="--metrics")
    calibrate: bool = setting(False, "also these with a temperature fitted on validation classes", anything,
                              flag="--calibrate")
    calibration_features: Path | None = setting(None, "feature bank of the validation classes, for --calibrate beside "
                                                "--features", anything)
    coverage: float | None = setting(None, "also sets that are to hold the true class at this rate, by thresholds from "
                                     "validation classes; implies --calibrate", anything)
    figure: Path | None = setting(None, "draw accuracy against what is a list (shots, ways, queries or alpha): FIGURE.png "
                                  "and .pdf", anything)
    json_file: Path | None = setting(None, "also write the results here; - prints them, and no table", anything,
                                     flag="--json")


@options_from_types(lists=True, left_out=("progress",), split=None, shots="1,5", device="auto")
def evaluate(context: typer.Context, subject: Values[Subject], banks: Banks, spec: Values[MethodSpec],
             protocol: Values[Protocol], run: Values[Run], asked: Asked, work: Values[Work], places: Places) -> None:
    """Accuracy with 95 % intervals over episodes of cached features. Finished runs are not repeated, interrupted ones go on
    where they stopped. Under torchrun (torchrun --nproc-per-node=2 -m fewshot eval ...) several processes share the work."""
    from fewshot.core.files import check_file_to_write
    from fewshot.data.banks import FeatureBank
    from fewshot.evaluation.store import Store

    if asked.coverage is not None:
        asked.calibrate = True
    _check(context, banks, protocol, asked)
    for path in (asked.figure, asked.json_file):
        if path is not None and path != Path("-"):
            check_file_to_write(path)
    data = data_of(context, subject, banks, places)
    wanted = runs_of(context, data.subject, spec, protocol, run, _learned(asked.learned, words(spec["method"])))
    axis = _axis(lists_of(protocol), asked.figure)
    if asked.episode_file:
        wanted = list({each.method: each for each in wanted}.values())
    calibration = FeatureBank.load(asked.calibration_features) if asked.calibration_features else asked.calibrate
    store = Store(places.runs)
    store.prepare()
    given = {"bank": data.bank, "base_bank": data.base_bank, "store": store, "metrics": asked.metrics,
             "calibrate": calibration, "coverage": asked.coverage, "episodes_file": asked.episode_file}
    results, failures = _results(context, wanted, data, Work(**{**work, "shard": shard_of(work["shard"])}),
                                 places.runs / "cache", given)
    if results:
        _show(results, asked, axis)
    if failures:
        _raise(failures, len(wanted))


def _results(context: typer.Context, wanted: list[Run], data: Data, work: Work, cache: Path,
             given: dict[str, Any]) -> tuple[list[Result], dict[Run, Exception]]:
    """Results of all runs, and why others have none. Without those whose other shards are missing, and none in all but the
    first of the processes that torchrun started, where the first failure ends all."""
    import torch

    from fewshot.core.team import joined
    from fewshot.evaluation.evaluate import evaluate as score
    from fewshot.evaluation.evaluate import whole_result
    from fewshot.evaluation.resolve import resolve
    from fewshot.features.source import FeatureSource

    def embed(run: Run) -> None:
        resolve(run, source=made)

    found, failures = [], {}
    with joined(torch.device("cpu")) as team:
        work = dataclasses.replace(work, progress=team.is_first)
        given["source"] = made = FeatureSource(data.root, cache, work.progress, work.device)
        if team.size > 1 and work.shard is not None:
            raise FewshotError("--shard under torchrun, which numbers its processes itself; leave it out")
        if team.is_first:
            subjects = {run.subject.images_key: run.subject for run in wanted}.values()
            bank = given["bank"]
            say_what_is_there(context, [bank] if bank is not None else [made.images(each) for each in subjects])
        if given["bank"] is None and given["episodes_file"] is None and team.size == 1:
            failures = _impossible(wanted, made)
        for run in wanted:
            if run in failures:
                continue
            if team.size > 1:
                if given["bank"] is None:  # the images are embedded once: the others find the features in the cache
                    team.from_first(functools.partial(embed, run))
                score(run, work=dataclasses.replace(work, shard=(team.rank, team.size)), **given)
                team.gather(None)  # every shard is kept now
                found += [whole_result(score(run, work=work, **given))] if team.is_first else []
                continue
            try:
                result = score(run, work=work, **given)
            except OSError:  # a full disk is full for the others, too
                raise
            except Exception as error:  # what one method does must not hide the results of the others
                failures[run] = error
                continue
            if result is not None:
                found.append(result)
            elif work.shard is not None:
                typer.echo(f"{run.method}, {run.protocol}: shard {work.shard[0]} of {work.shard[1]} is finished; others are "
                           "missing")
    return found, failures


def _impossible(wanted: list[Run], source: FeatureSource) -> dict[Run, Exception]:
    """Run -> why its images have no such episodes."""
    from fewshot.evaluation.resolve import check_images

    found: dict[Run, Exception] = {}
    for run in wanted:
        try:
            check_images(run, source)
        except FewshotError as error:
            found[run] = error
    return found


def _raise(failures: dict[Run, Exception], asked: int) -> NoReturn:
    """One error for all, after the results of the others were shown; a mistake in a method's code keeps its traceback."""
    for error in failures.values():
        if not isinstance(error, FewshotError):
            raise error
    if len(failures) == asked and len({run.spec for run in failures}) == 1:
        raise next(iter(failures.values()))
    lines = "".join(f"\n  {run.method}, {run.protocol}: {error}" for run, error in failures.items())
    raise FewshotError(f"{len(failures)} of {asked} evaluations failed:{lines}")


def _show(results: list[Result], asked: Asked, axis: str | None) -> None:
    from fewshot.core.files import write_atomically
    from fewshot.core.settings import settings_of
    from fewshot.reporting.accuracy_tables import results_table

    records = json.dumps([{"run": r.record.to_dict(), "key": r.record.key, **r.summary()} for r in results], indent=1)
    if asked.json_file == Path("-"):
        typer.echo(records)
        return
    results_table(results).print(keys=True)
    if asked.metrics or asked.calibrate or asked.calibration_features or any(r.record.open_classes for r in results):
        from fewshot.reporting.metric_tables import metrics_table

        metrics_table(results).print()
    if asked.figure and axis:
        from fewshot.reporting.accuracy_figures import accuracy_against, save_figure

        used = [r for r in results if not settings_of(r.record.protocol)[axis].unused(r.record.protocol)]
        typer.echo(f"wrote {' and '.join(map(str, save_figure(accuracy_against(used, axis), asked.figure)))}")
    if asked.json_file:
        typer.echo(f"wrote {write_atomically(asked.json_file, records.encode())}")


def _check(context: typer.Context, banks: Banks, protocol: Values[Protocol], asked: Asked) -> None:
    """Options that would have no effect beside others are refused."""
    if protocol["k_eff"] is not None and "k_eff" not in words(protocol["query_distribution"]):
        raise FewshotError(f"--k-eff={protocol['k_eff']} with --query-distribution={protocol['query_distribution']}; it "
                           "belongs to k_eff")
    if asked.episode_file:
        refuse_given(context, fields_of_episodes(), f"beside --episode-file {asked.episode_file}: the file says so")
    if asked.calibration_features and not banks.features or asked.calibrate and banks.features and \
            not asked.calibration_features:
        raise FewshotError("--calibrate beside --features needs the features of the validation classes, "
                           "--calibration-features FILE; without --features they are made from the data set")


def _axis(lists: dict[str, list], figure: Path | None) -> str | None:
    """What the figure is drawn against: the list with several values, of several the last one of the protocol's settings."""
    known = protocol_settings()
    several = [name for name, values in lists.items() if len(values) > 1 and known[name].axis]
    if figure and not several:
        raise FewshotError(f"--figure {figure}, but no list has several values; give e.g. --shots 1,5,10, --ways 5,10, "
                           "--queries 5,15 or --alpha 0.5,2,10")
    return several[-1] if several else None


def _learned(path: Path | None, methods: list[str]) -> dict[str, dict[str, Any]]:
    """Method -> parameters of the file that `fewshot fit` wrote."""
    if path is None:
        return {}
    from fewshot.tuning.unrolled import load_fitted

    found = load_fitted(path)
    if found.name not in methods:
        raise FewshotError(f"{path} holds values of {found.name}, which is not among the methods {', '.join(methods)}")
    return {found.name: found.parameters}
