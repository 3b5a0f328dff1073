"""What every file of `experiments/` shares: train its weights, run a list of `Run`s, print and keep the table."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.evaluation.evaluate import evaluate, whole_result
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store, experiment_store, kept_folder
from fewshot.experiments.published import Experiment, Published, obstacle, published_table
from fewshot.features.source import FeatureSource
from fewshot.reporting.accuracy_tables import comparison_table, results_table
from fewshot.reporting.table import Table

if TYPE_CHECKING:
    from fewshot.training import SupervisedConfig, TrainConfig, TrainResult


@dataclass(frozen=True)
class TrainingPlan:
    """How a file of `experiments/weights` was trained: settings, data set (its splits train and val) and backbone, whose
    random weights come from the seed of the settings. `base_options` are further options of the split train.

    generations   networks trained one after the other, each the teacher of the next; the last one counts
    """

    config: TrainConfig | SupervisedConfig
    dataset: str
    data_options: dict = field(default_factory=dict)
    base_options: dict = field(default_factory=dict)
    backbone: str = "conv4"
    backbone_options: dict = field(default_factory=dict)
    generations: int = 1

    def train(self, out: Path, root: str | Path | None = None) -> TrainResult:
        """Train into the folder `out`; what is there already is continued, or found."""
        from fewshot.backbones import create_backbone, input_for
        from fewshot.datasets import load_dataset
        from fewshot.training import SupervisedConfig, train, train_generations, train_supervised

        base = load_dataset(self.dataset, "train", root=root, **self.data_options, **self.base_options)
        validation = load_dataset(self.dataset, "val", root=root, **self.data_options)
        backbone = create_backbone(self.backbone, **{**input_for(self.backbone, base.images), **self.backbone_options},
                                   seed=self.config.seed)
        if not isinstance(self.config, SupervisedConfig):
            if self.generations > 1:
                raise FewshotError(f"generations={self.generations} of an episodic training; only supervised ones have them")
            return train(self.config, base, validation, backbone, out=out)
        if self.generations > 1:
            return train_generations(self.config, base, validation, backbone, out=out, generations=self.generations)
        return train_supervised(self.config, base, validation, backbone, out=out)

    def keep(self, result: TrainResult, path: str | Path) -> None:
        """Write the weights of a finished training to `path`; of a supervised one those of the backbone alone, as the heads
        of the base classes have no further use."""
        from fewshot.backbones import read_weights, save_weights
        from fewshot.training import SupervisedConfig

        if isinstance(self.config, SupervisedConfig):
            save_weights(result.backbone, path, provenance=read_weights(result.weights)[2])
        else:
            write_atomically(path, result.weights.read_bytes())


def run_experiment(file: str, runs: Sequence[Run], *, rows: Sequence[str] = ("backbone", "method"),
                   published: Sequence[Published] = (), differences: bool = False,
                   plans: Mapping[str, TrainingPlan] | None = None) -> list[Result]:
    """Evaluate `runs` (finished ones are found in the store) and write `results/<name>.md` and `.csv` beside `file`; with
    `published` numbers also `results/<name>_published.md`, with `differences` a file of paired differences per protocol.
    Runs whose data or weights are absent are left out, with the reason. Results in `kept/` beside `file` are found, too.

    The command line takes --data-root, --runs, and for a part of the runs or a trial, whose table is only printed,
    --dataset, --distribution (only this one), --shots, --method (only these) and --episodes (fewer). With `plans` (name of
    the weights -> TrainingPlan) it takes --train: train the weights named, or all, into RUNS/training/<name>, and put them
    into `weights/` beside `file`, before the evaluation.
    """
    path = Path(file)
    parser = argparse.ArgumentParser(description=f"experiment {path.stem}; see the head of {path.name}")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stored results")
    parser.add_argument("--keep", action="store_true", help=f"copy the results to {kept_folder(file)}, where they are "
                        "found from then on: for runs of hours, a few kilobytes each with few episodes")
    parser.add_argument("--episodes", type=int, help="fewer episodes, for a trial")
    parser.add_argument("--dataset", help="only the runs on this data set")
    parser.add_argument("--distribution", help="only the runs with these numbers of queries per class: balanced, dirichlet")
    parser.add_argument("--shots", type=int, nargs="+", help="only the runs with these numbers of shots")
    parser.add_argument("--method", nargs="+", help="only the runs of these methods")
    if plans:
        parser.add_argument("--train", nargs="*", metavar="WEIGHTS", choices=list(plans),
                            help=f"train first; all without names, or some of {', '.join(plans)}")
    arguments = parser.parse_args()
    if plans and arguments.train is not None:
        for name in arguments.train or plans:
            result = plans[name].train(arguments.runs / "training" / name, arguments.data_root)
            print(result, flush=True)
            plans[name].keep(result, weights_file(file, name))
    wanted = [run for run in of_setting(runs, arguments.dataset, arguments.distribution, arguments.shots)
              if run.method in (arguments.method or [run.method])]
    whole = len(wanted) == len(runs) and arguments.episodes is None
    wanted = possible_runs(wanted, arguments.data_root)
    if not wanted:
        raise SystemExit("no run can be made here")
    store = experiment_store(file, arguments.runs)
    source = FeatureSource(arguments.data_root, arguments.runs / "cache", progress=True)
    results = []
    for number, run in enumerate(wanted, 1):
        trial = run if arguments.episodes is None else dataclasses.replace(run, episodes=arguments.episodes)
        results.append(whole_result(evaluate(trial, store=store, progress=True, source=source)))
        print(f"[{number}/{len(wanted)}] {results[-1]!r} in {results[-1].seconds:.0f} s", flush=True)
        if arguments.keep and arguments.episodes is None:
            _keep(results[-1], Store(kept_folder(file)))
    table = results_table(results, rows=rows)
    table.print()
    if whole:
        write_atomically(path.parent / "results" / f"{path.stem}.md", table.to_markdown().encode())
        write_atomically(path.parent / "results" / f"{path.stem}.csv", table.to_csv().encode())
        for protocol in dict.fromkeys(r.protocol for r in results) if differences else ():
            name = "differences_" + re.sub("[^a-z0-9]+", "_", protocol.lower()).strip("_")
            write_differences(file, [r for r in results if r.protocol == protocol], name)
        if published:
            beside = published_table(Experiment(Path("experiments") / path.name, tuple(runs), tuple(published)), results,
                                     arguments.data_root)
            write_table(file, "published", beside)
    return results


def _keep(result: Result, kept: Store) -> None:
    """Save `result` unless it is there: written again it could differ in bytes, which nobody should have to commit."""
    known = kept.load(result.record)
    if known is None or known.summary() != result.summary():
        kept.save(result)


def of_setting(runs: Sequence[Run], dataset: str | None, distribution: str | None, shots: Sequence[int] | None) -> list[Run]:
    """Those on this data set, with this distribution of queries and one of these numbers of shots; None: any."""
    return [run for run in runs if dataset in (None, run.dataset) and distribution in (None, run.query_distribution)
            and run.shots in (shots or [run.shots])]


def possible_runs(runs: Sequence[Run], data_root: str | Path | None) -> list[Run]:
    """Those whose data and weights are here; prints why the others are left out."""
    reasons = {run.key: obstacle(run, data_root) for run in runs}
    for reason, count in Counter(reasons.values()).items():
        if reason is not None:
            print(f"left out {count} of {len(runs)} runs, missing: {reason}", flush=True)
    return [run for run in runs if reasons[run.key] is None]


def weights_file(file: str, name: str) -> str:
    """The path of `weights/<name>.safetensors` beside `file`."""
    return str(Path(file).parent / "weights" / f"{name}.safetensors")


def small_data_runs(file: str, method: str, *, shots: Sequence[int] = (1, 5),
                    distributions: Sequence[str] = ("balanced", "dirichlet"), **settings: Any) -> list[Run]:
    """5-way runs, balanced and Dirichlet(2) unless other settings of `Run` are given, on data that need no registration:
    Omniglot with the Conv-4 of experiments/omniglot_background.py, and Caltech-101 with EfficientNet-Lite0.

    Omniglot gets 5 queries per class on average: of its 20 drawings, 15 queries and 5 shots would use all, and a
    Dirichlet distribution could only come out balanced.
    """
    places = ({"dataset": "omniglot", "weights": weights_file(file, "conv4_omniglot_background"), "queries": 5},
              {"dataset": "caltech101", "backbone": "efficientnet_lite0"})
    return [Run(method=method, shots=count, query_distribution=distribution, **{**place, **settings})
            for place in places for distribution in distributions for count in shots]


def write_table(file: str, name: str, table: Table) -> None:
    """`table` into `results/<stem>_<name>.md` beside `file`."""
    path = Path(file)
    write_atomically(path.parent / "results" / f"{path.stem}_{name}.md", table.to_markdown().encode())


def write_differences(file: str, results: Sequence[Result], name: str) -> None:
    """Paired differences between `results` (one protocol) into `results/<stem>_<name>.md` beside `file`."""
    write_table(file, name, comparison_table(results))
