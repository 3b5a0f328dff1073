"""Published numbers, and tables of measured beside published for the files of `experiments/`."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen, frozen_dict
from fewshot.evaluation.record import Record
from fewshot.evaluation.resolve import as_trained
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.features.source import options_of_weights
from fewshot.methods.bases.own_weights import FRESH, trained_method, with_own
from fewshot.methods.contract import complete_parameters, method_parameters
from fewshot.reporting.accuracy_tables import result_notes
from fewshot.reporting.naming import parameter_text
from fewshot.reporting.table import TIED, Cell, Table


@dataclass(frozen=True)
class Published:
    """A number of a paper, in percent as printed there, under this project's names.

    ways                None stands for all classes of the data set; ways and shots that vary are texts such as "5-50",
                        and such a number is beside no run
    query_distribution  "balanced", "dirichlet" (alpha = 2), "k_eff" or "natural"
    interval            half width of its 95 % interval, None where none is printed
    source              paper, and where the number was read
    parameters          those that differ from the method's defaults; a measured result is put beside the number only if
                        it has exactly these
    """

    method: str
    dataset: str
    backbone: str
    ways: int | str | None
    shots: int | str
    query_distribution: str
    accuracy: float
    interval: float | None
    source: str
    parameters: dict = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        extra = {"balanced": "", "dirichlet": ", Dirichlet(2)", "k_eff": ", few classes present", "natural": ", natural"}
        return f"{self.ways or 'all'}-way {self.shots}-shot{extra[self.query_distribution]}"

    def matches(self, run: Run | Record) -> bool:
        """Whether `run` measures this number (with the backbone's weights and the protocol's details as `run` has them)."""
        names = ("method", "dataset", "backbone", "ways", "shots", "query_distribution")
        return (all(getattr(self, name) == getattr(run, name) for name in names)
                and run.parameters == frozen_dict(complete_parameters(self.method, self.parameters)))


def numbers(method: str, dataset: str, backbone: str, source: str, *values: tuple, ways: int | None = 5,
            query_distribution: str = "balanced", **parameters: Any) -> tuple[Published, ...]:
    """A row of a paper's table: values (shots, accuracy) or (shots, accuracy, interval)."""
    return tuple(Published(method, dataset, backbone, ways, shots, query_distribution, accuracy,
                           interval[0] if interval else None, source, parameters) for shots, accuracy, *interval in values)


@dataclass(frozen=True)
class Experiment:
    """A file of `experiments/`: its runs and the numbers that the paper reports."""

    path: Path
    runs: tuple[Run, ...]
    published: tuple[Published, ...]


def load_experiment(path: str | Path) -> Experiment:
    """Import the file (which evaluates nothing) and take its RUNS and PUBLISHED."""
    path = Path(path)
    if not path.is_file():
        raise FewshotError(f"no experiment at {path}; the files are in experiments/")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FewshotError(f"{path} is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "RUNS"):
        raise FewshotError(f"{path} defines no RUNS; it is a program of its own: python {path}")
    return Experiment(path, tuple(module.RUNS), tuple(getattr(module, "PUBLISHED", ())))


def obstacle(run: Run, root: str | Path | None = None) -> str | None:
    """What is missing here to make `run`, or None."""
    from fewshot.datasets.base import DATASETS, default_root

    cls = DATASETS[run.dataset]
    known = inspect.signature(cls).parameters
    dataset = cls(**{key: value for key, value in run.data_options.items() if key in known})
    missing = []
    if dataset.find(default_root(root)) is None:
        missing.append(f"data set {run.dataset} (`fewshot data --how {run.dataset}`)")
    try:
        weights_id(run.backbone, run.weights, run.method)
    except FewshotError as error:
        # Results are kept beside the experiments: the folder of whoever made them has no place there.
        absent = run.weights is not None and not Path(run.weights).exists()
        missing.append(f"weights {Path(run.weights).name} in experiments/weights" if absent else str(error))
    return "; ".join(missing) or None


@functools.cache
def weights_id(backbone: str, weights: str | None, method: str) -> str:
    """The identity by which stored results name these weights; raises FewshotError if they are not here."""
    own = trained_method(method, weights)
    return with_own(_backbone_id(backbone, weights), own and own[1]["sha256"])


def _backbone_id(backbone: str, weights: str | None) -> str:
    from fewshot.backbones import create_backbone
    from fewshot.backbones.base import BACKBONES
    from fewshot.backbones.create import FAMILIES
    from fewshot.backbones.weights import read_weights

    if not backbone.startswith(FAMILIES):
        named = BACKBONES[backbone].weights
        if weights is not None and weights not in named:
            return read_weights(weights)[1]["weights_sha256"]
        if (weights or named[0]) == "random":
            return "random:0"
    return create_backbone(backbone, weights=weights).weights_id


def find_results(runs: Iterable[Run], results: Iterable[Result]) -> dict[str, Result]:
    """Run key -> the stored result of each run that has one.

    A stored run names images and weights by content, one in an experiment by file: the weights are compared by their
    sha256; two results that differ in nothing but the images raise FewshotError.
    """
    stored = defaultdict(list)
    for result in results:
        weights = result.record.weights and result.record.weights.removesuffix(f"+{FRESH}")
        stored[_specification(result.record), weights].append(result)
    found = {}
    for run in runs:
        try:
            same = stored[_specification(run), weights_id(run.backbone, run.weights, run.method)]
        except FewshotError:  # the weights are not here, so nothing can be known to come from them
            continue
        if len(same) > 1:
            raise FewshotError(f"runs {', '.join(r.record.key for r in same)} differ only in the images; keep one of them")
        if same:
            found[run.key] = same[0]
    return found


def published_table(experiment: Experiment, results: Iterable[Result], root: str | Path | None = None) -> Table:
    """Measured (from `results`) beside published, and in the notes what is missing. Evaluates nothing."""
    found = find_results(experiment.runs, results)
    rows: list[tuple[Record | Published, Published | None, Result | None]] = []
    for number in experiment.published:
        matching = [found[run.key] for run in experiment.runs if run.key in found and number.matches(run)]
        rows += [(number, number, result) for result in matching] or [(number, number, None)]
    beside = {result.record.key for _, _, result in rows if result is not None}
    rows += [(result.record, None, result) for result in found.values() if result.record.key not in beside]
    labels = _labels([entry for entry, _, _ in rows])
    headings: tuple[str, ...] = ("data set", "backbone", "method", "protocol")
    sources = list(dict.fromkeys(number.source for number in experiment.published))
    if len(sources) > 1:
        headings += ("source",)
        labels = [(*label, f"[{sources.index(number.source) + 1}]" if number else "")
                  for label, (_, number, _) in zip(labels, rows, strict=True)]
    cells = tuple((_published_cell(number), _measured_cell(number, result)) for _, number, result in rows)
    measured = [result for _, _, result in rows if result is not None]
    notes = [f"{f'[{i}]' if len(sources) > 1 else 'Published in'} {source}." for i, source in enumerate(sources, 1)]
    if any(number and number.interval is None for _, number, _ in rows):
        notes.append("A published number without ± was printed without an interval.")
    notes += [*(result_notes(measured) if measured else []), *_missing(experiment, found, root)]
    legend = {TIED: "differs from the published number by more than both half widths together (training of the backbone "
                    "and choice of classes vary beyond these intervals)."}
    records = tuple(_record(label, number, result) for label, (_, number, result) in zip(labels, rows, strict=True))
    return Table(headings, tuple(labels), ("published", "measured"), cells, legend, tuple(notes), records, together=2)


def _specification(run: Run | Record) -> FrozenDict:
    """What a request and its record have in common."""
    record = as_trained(run).record() if isinstance(run, Run) else run
    options = dict(record.backbone_options)
    if isinstance(run, Run):  # a record names the options of its weights file, too, with those that follow from its images
        options = {**options_of_weights(run.subject), **options}
    options = {key: value for key, value in options.items() if key not in ("channels", "image_size")}
    others = dict.fromkeys(("weights", "data", "base"))  # compared by their content, or not known before the evaluation
    return frozen_dict({**record.comparable, **others, "backbone_options": options})


def _labels(entries: Sequence[Run | Record | Published]) -> list[tuple[str, ...]]:
    """Data set, backbone, method and protocol; with parameters only where rows would look the same without."""
    short = [(entry.dataset, entry.backbone, entry.method, str(entry.protocol)) for entry in entries]
    count = Counter(short)
    labels: list[tuple[str, ...]] = []
    for entry, label in zip(entries, short, strict=True):
        defaults = method_parameters(entry.method)
        changed = {k: v for k, v in entry.parameters.items() if k not in defaults or frozen(v) != frozen(defaults[k])}
        method = f"{entry.method} ({parameter_text(changed)})" if changed and count[label] > 1 else entry.method
        labels.append((*label[:2], method, label[3]))
    return labels


def _published_cell(number: Published | None) -> Cell | None:
    if number is None:
        return None
    return Cell(number.accuracy / 100, float("nan") if number.interval is None else number.interval / 100)


def _measured_cell(number: Published | None, result: Result | None) -> Cell | None:
    if result is None:
        return None
    accuracy = result.accuracy
    away = number is not None and differs(number, result)
    return Cell(accuracy.mean, accuracy.half_width, TIED if away else "", result.record.key)


def differs(number: Published, result: Result) -> bool:
    """Whether the difference exceeds both half widths together; a missing published one counts as 0."""
    gap = abs(100 * result.accuracy.mean - number.accuracy)
    return gap > 100 * result.accuracy.half_width + (number.interval or 0.0)


def _missing(experiment: Experiment, found: dict[str, Result], root: str | Path | None) -> list[str]:
    absent = [run for run in experiment.runs if run.key not in found]
    reasons = Counter(obstacle(run, root) for run in absent)
    possible = reasons.pop(None, 0)
    total = len(experiment.runs)
    notes = [f"Missing for {count} of {total} runs: {reason}." for reason, count in reasons.items()]
    if possible:
        place = f" --data-root {root}" if root is not None else ""
        notes.append(f"Not made yet, {possible} of {total} runs: python {experiment.path}{place}")
    alone = sum(not any(number.matches(run) for run in experiment.runs) for number in experiment.published)
    if alone:
        notes.append(f"Published without a run here: {alone} of {len(experiment.published)} numbers; the head of "
                     f"{experiment.path.name} says why.")
    return notes


def _record(label: Sequence[str], number: Published | None, result: Result | None) -> dict:
    """One row of the long form."""
    dataset, backbone, method, protocol = label[:4]
    record = {"dataset": dataset, "backbone": backbone, "method": method, "protocol": protocol,
              "published_percent": number and number.accuracy, "published_half_width_percent": number and number.interval,
              "source": number and number.source}
    if result is not None:
        record |= {"measured_percent": 100 * result.accuracy.mean, "run": result.record.key, "commit": result.commit,
                   "measured_half_width_percent": 100 * result.accuracy.half_width, "episodes": result.accuracy.n,
                   "differs": number and differs(number, result)}
    return record
