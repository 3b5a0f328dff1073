"""`fewshot eval`: accuracy of methods over episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.cli.options import (
    QUERIES_HELP,
    Backbone,
    BackboneSettings,
    BaseFeatures,
    Crops,
    DataRoot,
    Dataset,
    DataSettings,
    Episodes,
    Features,
    KEff,
    OpenClasses,
    OpenQueries,
    Runs,
    Seed,
    Settings,
    Split,
    Transforms,
    Weights,
    described,
    integers,
    method_names,
    numbers,
    pairs,
    queries_of,
    refuse_given,
    shard_of,
    source,
    text_of,
    words,
)
from fewshot.core.errors import FewshotError

if TYPE_CHECKING:
    from fewshot.evaluation.result import Result
    from fewshot.evaluation.run import Run


def evaluate(context: typer.Context, dataset: Dataset = "glyphs", split: Split = None, backbone: Backbone = "conv4",
             weights: Weights = None,
             features: Features = None, base_features: BaseFeatures = None,
             method: Annotated[str, typer.Option(help="methods, comma-separated; see `fewshot list methods`",
                                              autocompletion=method_names)] = "protonet",
             ways: Annotated[str, typer.Option(help="classes an episode, comma-separated")] = "5",
             shots: Annotated[str, typer.Option(help="support images a class, comma-separated")] = "1,5",
             queries: Annotated[str | None, typer.Option(help=f"{QUERIES_HELP}; comma-separated",
                                                         show_default=False)] = None,
             query_distribution: Annotated[str, typer.Option(help="balanced, dirichlet, k_eff, natural; comma-separated")]
             = "balanced",
             alpha: Annotated[str, typer.Option(help="concentration of the Dirichlet distribution, comma-separated")] = "2",
             k_eff: KEff = None, open_classes: OpenClasses = 0, open_queries: OpenQueries = 0, episodes: Episodes = 10_000,
             seed: Seed = 0, crops: Crops = "", transforms: Transforms = "",
             learned: Annotated[Path | None, typer.Option(help="values learned by `fewshot fit`")] = None,
             set_: Settings = None, data_set: DataSettings = None, backbone_set: BackboneSettings = None,
             data_root: DataRoot = None, runs: Runs = Path("runs"),
             episode_file: Annotated[Path | None, typer.Option(help="episodes from `fewshot episodes save`; they set ways, "
                                                               "shots and the rest of the protocol")] = None,
             metrics: Annotated[bool, typer.Option(help="also likelihood, Brier score, calibration error")] = False,
             calibrate: Annotated[bool, typer.Option(help="also these with a temperature fitted on validation classes")]
             = False,
             calibration_features: Annotated[Path | None, typer.Option(help="feature bank of the validation classes, for "
                                                                       "--calibrate beside --features")] = None,
             figure: Annotated[Path | None, typer.Option(help="draw accuracy against what is a list (shots, ways, queries "
                                                         "or alpha): FIGURE.png and .pdf")] = None,
             workers: Annotated[int, typer.Option(help="processes that share the work, one thread each")] = 1,
             shard: Annotated[str | None, typer.Option(metavar="I/N", help="only range I of N of the episodes, I from 0; "
                                                       "whichever is last, on any host with the same --runs, puts them all "
                                                       "together")] = None,
             json_file: Annotated[Path | None, typer.Option("--json", help="also write the results here; - prints them, "
                                                                 "and no table")] = None):
    """Accuracy with 95 % intervals over episodes of cached features. Finished runs are not repeated, interrupted ones go on
    where they stopped. Under torchrun (torchrun --nproc-per-node=2 -m fewshot eval ...) several processes share the work."""
    from fewshot.backbones import check_backbone
    from fewshot.core.files import write_atomically
    from fewshot.data.banks import FeatureBank
    from fewshot.evaluation.resolve import pretraining_notes
    from fewshot.evaluation.run import Run
    from fewshot.evaluation.store import Store
    from fewshot.reporting.accuracy_tables import results_table

    options, distributions = pairs(data_set), words(query_distribution)
    _check_eval(context, features, base_features, k_eff, distributions)
    if episode_file:
        _check_alone(context, episode_file)
    if calibration_features and not features or calibrate and features and not calibration_features:
        raise FewshotError("--calibrate beside --features needs the features of the validation classes, "
                           "--calibration-features FILE; without --features they are made from the data set")
    bank = FeatureBank.load(features) if features else None
    base_bank = FeatureBank.load(base_features) if base_features else None
    if bank is None:
        check_backbone(backbone, weights)
        dataset, split, data_root = source(dataset, split, data_root, options)
        subject, notes = {"dataset": dataset, "split": split, "backbone": backbone, "weights": text_of(weights),
                          "crops": crops, "backbone_options": pairs(backbone_set)}, ()
    else:
        subject = described(bank)
        notes = pretraining_notes(subject["backbone"], bank.provenance.get("pretrained_on"), bank.name)
    values = _learned(learned, words(method))
    queries = str(queries_of(subject["dataset"], queries))
    lists = {"ways": integers("--ways", ways), "shots": integers("--shots", shots),
             "queries": integers("--queries", queries), "alpha": numbers("--alpha", alpha)}
    wanted = [Run(**subject, method=name, ways=n, shots=k, parameters={**values.get(name, {}), **pairs(set_)},
                  queries=q, query_distribution=distribution, alpha=a, episodes=episodes,
                  k_eff=k_eff if distribution == "k_eff" else None, open_classes=open_classes, open_queries=open_queries,
                  seed=seed, transforms=transforms, data_options=options)
              for name in words(method) for distribution in distributions for n in lists["ways"] for k in lists["shots"]
              for q in lists["queries"] for a in (lists["alpha"] if distribution == "dirichlet" else lists["alpha"][:1])]
    axis = _axis(lists, figure)
    if episode_file:
        wanted = list({run.method: run for run in wanted}.values())
    calibration = FeatureBank.load(calibration_features) if calibration_features else calibrate
    store = Store(runs)
    store.prepare()
    given = {"bank": bank, "base_bank": base_bank, "store": store, "notes": notes, "metrics": metrics,
             "calibrate": calibration, "episodes_file": episode_file, "workers": workers}
    results = _results(wanted, None if shard is None else shard_of(shard), data_root, runs / "cache", given)
    if not results:
        return
    records = json.dumps([{"run": r.run.to_dict(), "key": r.run.key, **r.summary()} for r in results], indent=1)
    if json_file == Path("-"):
        typer.echo(records)
        return
    results_table(results).print()
    if metrics or calibration or open_classes:
        from fewshot.reporting.metric_tables import metrics_table

        metrics_table(results).print()
    if figure:
        from fewshot.reporting.accuracy_figures import accuracy_against, save_figure

        shown = [r for r in results if axis != "alpha" or r.run.query_distribution == "dirichlet"]
        typer.echo(f"wrote {' and '.join(map(str, save_figure(accuracy_against(shown, axis), figure)))}")
    if json_file:
        typer.echo(f"wrote {write_atomically(json_file, records.encode())}")


def _results(wanted: list[Run], shard: tuple[int, int] | None, root: Path | None, cache: Path, given: dict) -> list[Result]:
    """Results of all runs; without those whose other shards are missing, and none in all but the first of the processes
    that torchrun started."""
    import torch

    from fewshot.core.team import joined
    from fewshot.evaluation.evaluate import evaluate as score
    from fewshot.evaluation.resolve import resolve
    from fewshot.features.source import FeatureSource

    found = []
    with joined(torch.device("cpu")) as team:
        given["source"] = made = FeatureSource(root, cache, progress=team.is_first)
        if team.size > 1 and shard is not None:
            raise FewshotError("--shard under torchrun, which numbers its processes itself; leave it out")
        for run in wanted:
            if team.size > 1:
                if given["bank"] is None:  # the images are embedded once: the others find the features in the cache
                    team.from_first(lambda run=run: resolve(run, source=made) and None)
                score(run, progress=team.is_first, shard=(team.rank, team.size), **given)
                team.gather(None)  # every shard is kept now
                found += [score(run, **given)] if team.is_first else []
            elif (result := score(run, progress=True, shard=shard, **given)) is not None:
                found.append(result)
            else:
                typer.echo(f"{run.method}, {run.protocol}: shard {shard[0]} of {shard[1]} is finished; others are missing")
    return found


def _check_eval(context: typer.Context, features: Path | None, base_features: Path | None, k_eff: int | None,
                distributions: list[str]) -> None:
    """Options that would have no effect beside others are refused."""
    if features:
        refuse_given(context, ("dataset", "split", "backbone", "weights", "crops", "data_set", "backbone_set"),
                      "beside --features: the features know their data set and backbone")
    if base_features and not features:
        raise FewshotError("--base-features without --features: with a data set its own base classes are used")
    if k_eff is not None and "k_eff" not in distributions:
        raise FewshotError(f"--k-eff={k_eff} with --query-distribution={','.join(distributions)}; it belongs to k_eff")


def _check_alone(context: typer.Context, path: Path) -> None:
    """Beside a list of episodes, options that describe episodes would have no effect."""
    from fewshot.episodes.saved import PROTOCOL

    refuse_given(context, PROTOCOL, f"beside --episode-file {path}: the file says so")


def _axis(lists: dict[str, list], figure: Path | None) -> str | None:
    """What the figure is drawn against: the list with several values (where several have: alpha, queries, shots, ways)."""
    several = [name for name, values in lists.items() if len(values) > 1]
    if figure and not several:
        raise FewshotError(f"--figure {figure}, but no list has several values; give e.g. --shots 1,5,10, --ways 5,10, "
                           "--queries 5,15 or --alpha 0.5,2,10")
    return next((name for name in ("alpha", "queries", "shots", "ways") if name in several), None)


def _learned(path: Path | None, methods: list[str]) -> dict[str, dict]:
    """Method -> parameters of the file that `fewshot fit` wrote."""
    if path is None:
        return {}
    from fewshot.tuning.unrolled import load_fitted

    found = load_fitted(path)
    if found.name not in methods:
        raise FewshotError(f"{path} holds values of {found.name}, which is not among the methods {', '.join(methods)}")
    return {found.name: found.parameters}
