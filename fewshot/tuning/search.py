"""Choose hyper-parameters on validation classes: `tune` searches them, `fit_run` learns those of an unrolled method."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.frozen import plain
from fewshot.core.provenance import commit, versions
from fewshot.core.registry import unknown_message
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate_resolved, whole_result
from fewshot.evaluation.record import Record
from fewshot.evaluation.resolve import resolve
from fewshot.evaluation.result import Result, compare
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.evaluation.together import evaluate_together
from fewshot.evaluation.work import Work, source_taken_from
from fewshot.methods.bases.grid import GridMethod
from fewshot.statistics import Comparison
from fewshot.tuning.unrolled import FitResult, fit_method

if TYPE_CHECKING:
    from fewshot.features.source import FeatureSource


@dataclass(frozen=True)
class Range:
    """Values to draw from: uniform between `low` and `high`, or uniform in the logarithm. Whole numbers where both ends
    are int, except for a parameter whose present value is a float."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise FewshotError(f"range {self.low} to {self.high}; the first number must be below the second")
        if self.log and self.low <= 0:
            raise FewshotError(f"a logarithmic range cannot start at {self.low}; use a positive number")

    def draw(self, generator: np.random.Generator, present: object = None) -> float | int:
        whole = isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(present, float)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = math.exp(generator.uniform(math.log(low), math.log(high))) if self.log else generator.uniform(low, high)
        # Four digits: what a person can copy; the record and the run hold exactly the value that was used.
        return min(max(round(value), self.low), self.high) if whole else float(f"{value:.4g}")


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What a search found.

    best         the given run with the chosen values, still on validation classes:
                 `dataclasses.replace(best, split="test")` is the run to report
    chosen       the searched parameters of `best`
    reason       why these: best mean, or not distinguishable from it and closer to the starting values
    candidates   results in the order tried; the first has the values that the given run had
    values       the searched parameters of each of them
    gaps         paired difference of each of them to the highest mean
    record       the JSON file of the search, None without a store

    `fewshot.reporting.search_table` prints it.
    """

    best: Run
    chosen: dict
    reason: str
    candidates: tuple[Result, ...]
    values: tuple[dict, ...]
    gaps: tuple[Comparison, ...]
    record: Path | None = None


def tune(run: Run, grid: Mapping[str, Sequence] | None = None, *, ranges: Mapping[str, Range] | None = None,
         samples: int | None = None, seed: int = 0, bank: FeatureBank | None = None, base_bank: FeatureBank | None = None,
         store: Store | None = None, source: FeatureSource | None = None, work: Work | None = None,
         **settings: Any) -> TuneResult:
    """Evaluate candidates for some parameters of `run.method`, all on the same validation episodes, and choose one.

    run       split="val"; its parameters are the first candidate, its ways, shots, ... the protocol for all
    grid      parameter -> values. Without `samples` every combination is tried
    ranges    parameter -> Range; needs `samples`
    samples   random search: this many draws (without repetition from the grid alone), reproducible from `seed`
    bank      features of the validation classes, split="val"; without it the data set is loaded and embedded
    store     where results and, as `<method>-<digest>.json`, the record of the search are kept. Use another folder than
              that of final results, so that tables of those do not list the candidates
    source, work   as for `evaluate`; settings: `root` and `cache` of a source, `workers`, `device`, `progress` of work

    Chosen is the candidate of highest mean, unless candidates that differ less from the run's own values cannot be
    distinguished from it (the 95 % interval of the paired difference includes zero; no correction for several
    comparisons): then the one among these with most values kept, and of several the one of highest mean.

    Candidates of a `GridMethod` that differ only in values that it reuses its work for (alpha, beta and gamma of
    `tip_adapter`, `tip_x` and `ape`) are evaluated together, with the results that each has alone; not with several
    workers, nor from where an interrupted search stopped.

    Raises FewshotError for any other split, nothing to search, unknown parameters and values a method refuses.
    """
    work = Work.taken_from(settings, work)
    source = source_taken_from(settings, work, source)
    refuse_unknown(settings)
    check_validation(run, bank)
    tried = _candidates(run, dict(grid or {}), dict(ranges or {}), samples, seed)
    names = list(tried[0])
    runs = [run.changed(parameters={**run.parameters, **values}) for values in tried]
    if store is not None:
        store.prepare()
    found = [resolve(candidate, bank, base_bank, source=source) for candidate in runs]
    method = found[0].method
    if isinstance(method, GridMethod) and set(names) <= set(method.reused) and (work.workers, work.shard) == (1, None):
        results = evaluate_together(method, found, tried, store, work)
    else:
        results = [whole_result(evaluate_resolved(candidate, store=store, work=work)) for candidate in found]
    top = max(results, key=lambda r: r.accuracy.mean)
    gaps = [compare(r, top) for r in results]
    kept = [sum(plain(values[name]) == plain(tried[0][name]) for name in names) for values in tried]
    # `top` compared with itself has no difference, so it is always among those that cannot be distinguished.
    number = max((i for i, gap in enumerate(gaps) if not gap.significant), key=lambda i: (kept[i], results[i].accuracy.mean))
    ties = sum(not gap.significant for gap in gaps) - 1
    reason = _reason(results[number] is top, number == 0, ties, gaps[number])
    record = None
    if store is not None:
        search = {"grid": {k: list(v) for k, v in (grid or {}).items()},
                  "ranges": {k: dataclasses.asdict(v) for k, v in (ranges or {}).items()}, "samples": samples, "seed": seed}
        record = _write(store.root, found[0].record, search, tried, results, gaps, number, reason)
    return TuneResult(runs[number], tried[number], reason, tuple(results), tuple(tried), tuple(gaps), record)


def fit_run(run: Run, *, bank: FeatureBank | None = None, base_bank: FeatureBank | None = None,
            source: FeatureSource | None = None, work: Work | None = None,
            progress_epochs: Callable[[int, float], None] | None = None, **settings: Any) -> FitResult:
    """Learn the values of an unrolled method (`unem_gaussian`, `unem_dirichlet`) on the episodes of `run`, split="val".

    source, work      as for `tune`;  progress_epochs  called as progress_epochs(epoch, loss)
    settings          of `fit_method`: epochs, lr, halve_every, batch, loss, seed; and as for `tune`

    `Run(method=run.method, parameters=found.parameters, ...)` evaluates what was learned.
    """
    check_validation(run, bank)
    work = Work.taken_from(settings, work)
    found = resolve(run, bank, base_bank, source=source_taken_from(settings, work, source))
    device, run, record = own_device(work.device), found.run, found.record
    episodes, labels = run.sampler(found.bank).sample(found.bank, 0, run.episodes)
    episodes = run.spec.chain.fit(found.base_bank)(episodes).to(device)
    described = {key: value for key, value in record.to_dict().items() if key not in ("parameters", "seed", "queries")}
    described |= {"episode_seed": run.seed, "queries_per_class": run.queries, "initial": record.to_dict()["parameters"]}
    return fit_method(found.method, episodes, labels.to(device), provenance=described, progress=progress_epochs, **settings)


def refuse_unknown(settings: Mapping[str, object]) -> None:
    """Raise FewshotError for keywords that nothing took."""
    for name in settings:
        raise FewshotError(unknown_message("keyword", name, [*(f.name for f in dataclasses.fields(Work)), "root", "cache"]))


def check_validation(run: Run, bank: FeatureBank | None = None) -> None:
    """Raises FewshotError unless the bank, or without one the split of `run`, is of the validation classes."""
    what, split = ("split", run.split) if bank is None else ("the bank's split", bank.split)
    if split != "val":
        raise FewshotError(f"{what} is {split!r}; hyper-parameters are chosen on validation classes (split='val'), test "
                           "classes are for final numbers only")


def _candidates(run: Run, grid: dict, ranges: dict, samples: int | None, seed: int) -> list[dict]:
    """Values of the searched parameters; the first are those of `run`, none comes twice."""
    if not grid and not ranges:
        raise FewshotError(f"nothing to search; give values, e.g. --grid {next(iter(run.parameters), 'name')}=...")
    if ranges and samples is None:
        raise FewshotError(f"a range ({', '.join(ranges)}) needs a random search; say how many draws (--random 20)")
    if samples is not None and samples < 1:
        raise FewshotError(f"{samples} random draws; at least 1 is needed")
    if both := sorted(grid.keys() & ranges.keys()):
        raise FewshotError(f"{', '.join(both)} has both a range and listed values; give one of them")
    if empty := [name for name, values in grid.items() if len(values) == 0]:
        raise FewshotError(f"no values for {', '.join(empty)}")
    run.changed(parameters={**dict.fromkeys([*grid, *ranges]), **run.parameters})  # raises on unknown names
    generator = np.random.default_rng(check_integer("seed", seed, 0))
    start = {name: run.parameters[name] for name in (*grid, *ranges)}
    # 5 for a parameter that is 5.0 would be another run with the same numbers.
    alike = {name: [float(v) if type(v) is int and isinstance(start[name], float) else v for v in values]
             for name, values in grid.items()}
    product = [dict(zip(alike, values, strict=True)) for values in itertools.product(*alike.values())]
    if samples is None:
        drawn = product
    elif not ranges:
        drawn = [product[i] for i in generator.permutation(len(product))[:samples]]
    else:
        drawn = [{**product[generator.integers(len(product))],
                  **{name: span.draw(generator, start[name]) for name, span in ranges.items()}} for _ in range(samples)]
    return list({json.dumps(plain(values), sort_keys=True): values for values in [start, *drawn]}.values())


def _reason(is_top: bool, is_start: bool, ties: int, gap: Comparison) -> str:
    if is_top:
        rest = "distinguishable from all others" if not ties else (
            f"{ties} other{'s' * (ties > 1)} cannot be distinguished from it, none of them closer to the starting values")
        return f"highest mean; {rest}"
    which = "the starting values" if is_start else "of those that cannot, it keeps most of the starting values"
    return (f"{which}: cannot be distinguished from the highest mean (paired difference {gap.difference.percent()} "
            "percentage points)")


def candidate_numbers(result: Result, gap: Comparison) -> dict:
    """What the record and the table say of one candidate."""
    return {"run": result.record.key, "accuracy": result.accuracy.mean, "interval95": result.accuracy.half_width,
            "difference_to_best": gap.difference.mean, "difference_interval95": gap.difference.half_width,
            "distinguishable": gap.significant, "p_value": gap.p_value}


def _write(folder: Path, run: Record, search: dict, tried: Sequence[dict], results: Sequence[Result],
           gaps: Sequence[Comparison], number: int, reason: str) -> Path:
    """One file a search: the same search again replaces it."""
    described = run.to_dict()
    fixed = {key: value for key, value in described.pop("parameters").items() if key not in tried[0]}
    record = {"method": run.method, "search": search, "run": described, "other_parameters": fixed,
              "fingerprint": results[0].fingerprint, "chosen": tried[number], "reason": reason,
              "candidates": [{"parameters": values, **candidate_numbers(result, gap)}
                             for values, result, gap in zip(tried, results, gaps, strict=True)],
              "versions": versions(), "commit": commit()}
    record = plain(record)
    asked = json.dumps([search, described, fixed, record["candidates"][0]["parameters"]], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    return write_atomically(folder / f"{run.method}-{digest}.json", json.dumps(record, indent=1).encode())
