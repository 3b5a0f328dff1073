"""`fewshot episodes`: save a list of episodes to a file, and say what such a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import (
    Alpha,
    DataRoot,
    Dataset,
    DataSettings,
    Episodes,
    Features,
    KEff,
    OpenClasses,
    OpenQueries,
    Queries,
    Seed,
    Split,
    described,
    pairs,
    queries_of,
    source,
)

app = typer.Typer(help="Lists of episodes as files, to be evaluated elsewhere on the same data.", no_args_is_help=True)


@app.command()
def save(out: Annotated[Path, typer.Option(help="file to write (.safetensors)")], dataset: Dataset = "glyphs",
         split: Split = None, features: Features = None,
         ways: Annotated[int, typer.Option(help="classes an episode")] = 5,
         shots: Annotated[int, typer.Option(help="support images a class")] = 1, queries: Queries = None,
         query_distribution: Annotated[str, typer.Option(help="balanced, dirichlet, k_eff or natural")] = "balanced",
         alpha: Alpha = 2.0, k_eff: KEff = None, open_classes: OpenClasses = 0, open_queries: OpenQueries = 0,
         episodes: Episodes = 10_000, seed: Seed = 0, data_set: DataSettings = None, data_root: DataRoot = None):
    """Draw episodes once and keep their row numbers; `fewshot eval --episode-file` evaluates them."""
    from fewshot.data.banks import FeatureBank
    from fewshot.datasets import load_dataset
    from fewshot.evaluation.run import Run

    if features:
        bank = FeatureBank.load(features)
        subject = described(bank)
    else:
        options = pairs(data_set)
        dataset, split, data_root = source(dataset, split, data_root, options)
        bank, subject = load_dataset(dataset, split, root=data_root, **options), {"dataset": dataset, "split": split}
    queries = queries_of(subject["dataset"], queries)
    run = Run(**subject, ways=ways, shots=shots, queries=queries, query_distribution=query_distribution, alpha=alpha,
              k_eff=k_eff, open_classes=open_classes, open_queries=open_queries, episodes=episodes, seed=seed)
    found = run.drawn(bank)
    typer.echo(f"wrote {found.save(out)}: {len(found)} episodes, fingerprint {found.fingerprint}")


@app.command()
def show(path: Annotated[Path, typer.Argument(help="a file written by `fewshot episodes save`")]):
    """What a file of episodes holds, and which data it belongs to."""
    from fewshot.episodes.saved import PROTOCOL, EpisodeList

    found = EpisodeList.load(path)
    typer.echo(f"{len(found)} episodes of {found.name}, split {found.split} ({found.items} items)")
    dirichlet = found.protocol["query_distribution"] == "dirichlet"
    used = {name: found.protocol[name] for name in PROTOCOL if name == "seed" or found.protocol[name]}
    typer.echo(", ".join(f"{name} {value}" for name, value in used.items() if name != "alpha" or dirichlet))
    typer.echo(f"data identity {found.identity}")
    typer.echo(f"fingerprint {found.fingerprint}")
