"""The commands that choose or learn hyper-parameters on validation classes: `fewshot tune` and `fewshot fit`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import (
    Alpha,
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
    Method,
    Queries,
    Runs,
    Seed,
    Settings,
    Transforms,
    Weights,
    described,
    literal,
    method_names,
    named,
    pairs,
    queries_of,
    source,
    text_of,
    value_lists,
)
from fewshot.core.errors import FewshotError

Unrolled = Annotated[str, typer.Option(help="an unrolled method", autocompletion=method_names)]
Ways = Annotated[int, typer.Option(help="classes an episode")]
Shots = Annotated[int, typer.Option(help="support images a class")]
Split = Annotated[str, typer.Option(help="must be val: test classes are for final numbers only")]
Distribution = Annotated[str, typer.Option(help="balanced, dirichlet, k_eff or natural")]


def tune(method: Method, dataset: Dataset = "glyphs", split: Split = "val",
         backbone: Backbone = "conv4", weights: Weights = None, features: Features = None,
         base_features: BaseFeatures = None,
         grid: Annotated[list[str] | None, typer.Option(metavar="NAME=V,V,..", help="values to try; repeat for more "
                                                        "parameters, all combinations are tried")] = None,
         random: Annotated[int | None, typer.Option(help="this many random draws, not all combinations")] = None,
         ranges: Annotated[list[str] | None, typer.Option("--range", metavar="NAME=LOW:HIGH[:log]",
                                                          help="range of a parameter in a random search")] = None,
         ways: Ways = 5, shots: Shots = 1, queries: Queries = None, query_distribution: Distribution = "balanced",
         alpha: Alpha = 2.0, k_eff: KEff = None, episodes: Episodes = 2000, seed: Seed = 0,
         crops: Crops = "", transforms: Transforms = "",
         search_seed: Annotated[int, typer.Option(help="seed of the random draws")] = 0,
         placement: Annotated[bool, typer.Option("--placement", help="search which blocks of the backbone to adapt, in "
                                                 "rounds (finetune, pmf, film, lora, tsa)")] = False,
         set_: Settings = None, data_set: DataSettings = None, backbone_set: BackboneSettings = None,
         data_root: DataRoot = None, runs: Runs = Path("runs")):
    """Choose hyper-parameters on validation classes: grid or random search, the same episodes for every candidate.

    Results and a record of the search are kept in RUNS/tune.
    """
    from fewshot.evaluation.store import Store
    from fewshot.reporting.search_table import search_table
    from fewshot.tuning.search import tune as search

    run, place = _setting(method, dataset, split, backbone, weights, features, base_features, set_, data_set,
                          backbone_set, data_root, crops, ways=ways, shots=shots, queries=queries,
                          query_distribution=query_distribution,
                          alpha=alpha, k_eff=k_eff, episodes=episodes, seed=seed, transforms=transforms)
    ranges = {name: _range(name, text) for name, text in named(ranges)}
    kept = {"store": Store(runs / "tune"), "cache": runs / "cache", "progress": True}
    if placement:
        from fewshot.tuning.blocks import tune_placement

        if grid or ranges or random or features:
            raise FewshotError("--placement searches blocks of a backbone on images: leave out --grid, --range, --random "
                               "and --features")
        rounds = tune_placement(run, root=place["root"], **kept)
        for found in rounds:
            search_table(found).print()
    else:
        found = search(run, value_lists(grid), ranges=ranges, samples=random, seed=search_seed, **place, **kept)
        search_table(found).print()
    settings = [word for name, value in found.chosen.items() for word in ("--set", shlex.quote(f"{name}={value}"))]
    typer.echo(f"recorded in {found.record}")
    typer.echo(" ".join([f"chosen: --method {method}", *settings]))


def fit(method: Unrolled = "unem_gaussian", dataset: Dataset = "glyphs",
        split: Split = "val", backbone: Backbone = "conv4", weights: Weights = None, features: Features = None,
        base_features: BaseFeatures = None,
        out: Annotated[Path | None, typer.Option(help="file to write (default: RUNS/fitted/....safetensors)")] = None,
        ways: Ways = 5, shots: Shots = 1, queries: Queries = None, query_distribution: Distribution = "balanced",
        alpha: Alpha = 2.0, k_eff: KEff = None, episodes: Episodes = 1000, seed: Seed = 0,
        crops: Crops = "", transforms: Transforms = "",
        epochs: Annotated[int | None, typer.Option(help="passes over the episodes (default: the paper's)")] = None,
        lr: Annotated[float | None, typer.Option(help="step size of Adam (default: the paper's)")] = None,
        halve_every: Annotated[int | None, typer.Option(help="epochs between halvings of lr (default: the paper's)")] = None,
        batch: Annotated[int | None, typer.Option(help="episodes a step (default: the paper's)")] = None,
        loss: Annotated[str, typer.Option(help="cross_entropy or official_double_softmax")] = "cross_entropy",
        set_: Settings = None, data_set: DataSettings = None, backbone_set: BackboneSettings = None,
         data_root: DataRoot = None, runs: Runs = Path("runs")):
    """Learn the hyper-parameters of an unrolled method on validation episodes and keep them in a file."""
    from tqdm import tqdm

    from fewshot.tuning.search import fit_run
    from fewshot.tuning.unrolled import save_fitted

    run, place = _setting(method, dataset, split, backbone, weights, features, base_features, set_, data_set,
                          backbone_set, data_root, crops, ways=ways, shots=shots, queries=queries,
                          query_distribution=query_distribution,
                          alpha=alpha, k_eff=k_eff, episodes=episodes, seed=seed, transforms=transforms)
    if out is None:
        words = (method, run.dataset, run.backbone, f"{ways}w{shots}s", query_distribution)
        out = runs / "fitted" / (re.sub(r"[^\w.-]+", "_", "_".join(words)) + ".safetensors")
    with tqdm(desc=f"{method} {run.protocol}", unit="epoch", leave=False) as bar:
        def show(epoch: int, value: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}")

        found = fit_run(run, **place, cache=runs / "cache", epochs=epochs, lr=lr, halve_every=halve_every,
                        batch=batch, loss=loss, progress_epochs=show)
    typer.echo(f"loss {found.history[0]:.4f} before, {found.history[found.best_epoch]:.4f} after epoch {found.best_epoch} "
               f"of {len(found.history) - 1}")
    typer.echo(f"wrote {save_fitted(out, found)}; evaluate it on test classes: fewshot eval --method {method} --learned "
               f"{shlex.quote(str(out))} with the same data set, backbone, ways and shots")


def _setting(method, dataset, split, backbone, weights, features, base_features, set_, data_set, backbone_set, data_root,
             crops, **protocol):
    """(run, banks and data root as keywords) of the options that both commands share."""
    from fewshot.backbones import check_backbone
    from fewshot.data.banks import FeatureBank
    from fewshot.evaluation.run import Run

    options = pairs(data_set)
    if base_features and not features:
        raise FewshotError("--base-features without --features: with a data set its own base classes are used")
    if features:
        if crops:
            raise FewshotError(f"--crops {crops} beside --features: crops are cut when images are embedded (fewshot embed)")
        bank = FeatureBank.load(features)
        subject = described(bank)
    else:
        bank = None
        check_backbone(backbone, weights)
        dataset, split, data_root = source(dataset, split, data_root, options)
        subject = {"dataset": dataset, "split": split, "backbone": backbone, "weights": text_of(weights), "crops": crops,
                   "backbone_options": pairs(backbone_set)}
    protocol["queries"] = queries_of(subject["dataset"], protocol["queries"])
    run = Run(**subject, method=method, parameters=pairs(set_), data_options=options, **protocol)
    base_bank = FeatureBank.load(base_features) if base_features else None
    return run, {"bank": bank, "base_bank": base_bank, "root": data_root}


def _range(name: str, text: str):
    from fewshot.tuning.search import Range

    low, _, rest = text.partition(":")
    high, _, kind = rest.partition(":")
    ends = literal(low), literal(high)
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends) or kind not in ("", "log"):
        raise FewshotError(f"--range {name}={text}; expected LOW:HIGH or LOW:HIGH:log with numbers, e.g. 1:100:log")
    return Range(*ends, log=kind == "log")
