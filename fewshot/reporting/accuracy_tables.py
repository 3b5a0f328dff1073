"""Tables of results: every number with its interval, its episodes and what it assumes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fewshot.core.errors import FewshotError
from fewshot.evaluation.result import Result, compare
from fewshot.reporting.naming import distinct_labels, natural, result_field, separating_fields, unique_results
from fewshot.reporting.table import BEST, TIED, Cell, Table

_PROTOTYPES = ("protonet", "simple_shot")


def results_table(results: Iterable[Result], rows: Sequence[str] = ("backbone", "method"),
                  columns: str | Sequence[str] = "protocol", interval: str = "episodes") -> Table:
    """Accuracy ± half width of the 95 % interval, in percent.

    interval        "episodes"; "classes": how the number would move with other novel classes, too; "bootstrap": over
                    episodes without the assumption that their mean is normal, half the length is shown
    rows, columns   run settings, "protocol" or "setting". Settings that tell results apart and are in neither become
                    further row headings, so a cell never hides a choice; "setting" is always shown.

    Within a column, results on the same episodes (equal fingerprints) are compared by their paired differences to the
    best mean: it is bold when all those intervals exclude zero, otherwise it and all results whose interval includes
    zero carry a dagger. Raises FewshotError without results and for unknown fields.
    """
    results = unique_results(results)
    rows, columns = tuple(rows), (columns,) if isinstance(columns, str) else tuple(columns)
    added = separating_fields(results, (*rows, *columns), ("setting",))
    front = tuple(name for name in ("dataset", "split", "backbone") if name in added)
    headings = (*front, *rows, *(name for name in added if name not in front))
    headings += () if "setting" in (*headings, *columns) else ("setting",)
    grid: dict[tuple[str, ...], dict[str, Result]] = defaultdict(dict)
    for result in results:
        label, column = (tuple(result_field(result, n) for n in which) for which in (headings, columns))
        known = grid[label].setdefault(", ".join(column), result)
        if not known.correct.equal(result.correct):
            raise FewshotError(f"runs {known.record.key} and {result.record.key} differ in nothing that a table shows; "
                               "keep one of them")
    labels = sorted(grid, key=lambda label: [natural(text) for text in label])
    names = sorted({name for row in grid.values() for name in row}, key=natural)
    marks: dict[str, str] = {}
    for name in names:
        marks |= _marks([row[name] for row in grid.values() if name in row])
    cells = tuple(tuple(Cell(r.accuracy.mean, r.interval(interval).half_width, marks.get(r.record.key, ""), r.record.key)
                        if (r := grid[label].get(name)) else None for name in names) for label in labels)
    ordered = [grid[label][name] for label in labels for name in names if name in grid[label]]
    legend = {BEST: "best of the column on the same episodes; the 95 % interval of its paired difference to each other "
                    "one excludes zero (no correction for several comparisons).",
              TIED: "not distinguishable from the best of the column: the 95 % interval of the paired difference on "
                    "the same episodes includes zero (no correction for several comparisons)."}
    return Table(tuple(name.replace("_", " ") for name in headings), tuple(labels), tuple(names), cells, legend,
                 tuple(result_notes(results, interval)), tuple(_record(r, marks.get(r.record.key, "")) for r in ordered))


def comparison_table(results: Iterable[Result]) -> Table:
    """Paired differences on the same episodes: cell [i, j] is the accuracy of row i minus that of column j, in percent.

    Raises FewshotError for fewer than two results, and when results are on different episodes.
    """
    results = sorted(unique_results(results), key=lambda r: -r.accuracy.mean)
    if len(results) < 2:
        raise FewshotError("1 result; a comparison needs at least 2 results on the same episodes")
    labels = distinct_labels(results)
    records = []
    cells: list[list[Cell | None]] = [[None] * len(results) for _ in results]
    for (i, a), (j, b) in itertools.combinations(enumerate(results), 2):
        found = compare(a, b)
        gap, mark = found.difference, "" if found.significant else TIED
        cells[i][j] = Cell(gap.mean, gap.half_width, mark, f"{a.record.key} - {b.record.key}")
        cells[j][i] = Cell(-gap.mean, gap.half_width, mark, f"{b.record.key} - {a.record.key}")
        records.append({"a": labels[i], "b": labels[j], "difference_percent": 100 * gap.mean,
                        "half_width_percent": 100 * gap.half_width, "excludes_zero": found.significant,
                        "share_better": found.better, "share_ties": found.ties, "p_value": found.p_value,
                        "episodes": gap.n, "fingerprint": a.fingerprint, "run_a": a.record.key, "run_b": b.record.key})
    notes = [f"Accuracy of the row minus accuracy of the column, percentage points ± half width of the 95 % interval "
             f"over {len(results[0].correct)} paired episodes (Student t); it covers episode sampling.",
             *result_notes(results)[1:]]
    return Table(("row − column",), tuple((name,) for name in labels), tuple(labels), tuple(map(tuple, cells)),
                 {TIED: "the interval includes zero (no correction for several comparisons)."}, tuple(notes),
                 tuple(records), signed=True)


def _balanced(result: Result) -> bool:
    return result.record.protocol.settings().get("query_distribution") == "balanced"


def result_notes(results: Sequence[Result], interval: str = "episodes") -> list[str]:
    """What a reader must know about these results, one sentence each."""
    sizes = sorted({len(r.correct) for r in results})
    if interval == "classes":
        covers = "; ".join(sorted({r.over_classes.covers for r in results}, key=natural))
        notes = [f"Accuracy in percent ± half width of the 95 % interval (leaving out one class at a time, {_join(sizes)} "
                 f"episodes); the interval covers {covers}, not the backbone or the training seed."]
    else:
        covers = " and ".join(sorted({r.accuracy.covers for r in results}))
        kind = "bootstrap, half its length," if interval == "bootstrap" else "Student t"
        notes = [f"Accuracy in percent ± half width of the 95 % interval ({kind} over {_join(sizes)} episodes); the "
                 f"interval covers {covers}, not the choice of classes, backbone or training seed."]
    if len(sizes) > 1:
        notes += [f"{size} episodes: {_subject([r for r in results if len(r.correct) == size], results)}." for size in sizes]
    untrained = sorted({result_field(r, "backbone") for r in results if str(r.record.weights).startswith("random:")})
    notes += [f"Untrained weights: {_join(untrained)}."] if untrained else []
    sets = sorted({f"{r.data_name}, split {r.record.split}" for r in results})
    per_class = [r for r in results if "queries" in r.record.protocol.settings()]
    queries, seeds = (sorted({getattr(r.record, name) for r in some}) for name, some in (
        ("queries", per_class), ("seed", [r for r in results if not r.record.episode_list])))
    average = "" if all(map(_balanced, per_class)) else " (a mean where not balanced)"
    each = f"Queries per class: {_join(queries)}{average}. " if per_class else ""
    lists = sorted({r.record.episode_list[:12] for r in results if r.record.episode_list})
    drawn = [f"Episode seed {_join(seeds)}."] if seeds else []
    drawn += [f"Episodes of a file, fingerprint {_join(lists)}."] if lists else []
    notes.append(f"Data: {'; '.join(sets)}. {each}{' '.join(drawn)}")
    for protocol in sorted({r.protocol for r in results}, key=natural):
        if len({r.fingerprint for r in results if r.protocol == protocol}) > 1:
            notes.append(f"{protocol}: results are on different episodes; only those on the same ones are compared.")
    changed = sorted({f"{r.record.method}: {result_field(r, 'parameters')}" for r in results
                      if result_field(r, "parameters") != "defaults"}, key=natural)
    notes += [f"Parameters other than the defaults: {'; '.join(changed)}."] if changed else []
    assumptions = sorted({what for r in results for what in r.assumes})
    notes += [f"Assuming {what}: {_join(sorted({r.record.method for r in results if what in r.assumes}))}."
              for what in assumptions]
    told = sorted({r.record.method for r in results if "balanced queries" in r.assumes and r.record.queries == 1
                   and r.record.query_distribution == "balanced"})
    if told:
        notes.append(f"Using that every class has exactly one query, which other methods are not told: {_join(told)}.")
    uneven = {r.record.method for r in results if not _balanced(r)}
    lacking = sorted({r.record.method for r in results if r.setting == "transductive"} - uneven)
    notes += [f"Transductive, evaluated with balanced queries only: {', '.join(lacking)}."] if lacking else []
    for text in dict.fromkeys(note for r in results for note in r.notes):
        subject = _subject([r for r in results if text in r.notes], results)
        notes.append(f"{'' if text.startswith(subject) else f'{subject}: '}{text}.")
    below = [r for r in results if _at_or_below_prototypes(r, results)]
    if below:
        notes.append(f"No better than the nearest prototype on the same episodes: {_subject(below, results, True)}.")
    for r, label in zip(results, distinct_labels(results, ("protocol",)), strict=True):
        failed = 0 if r.converged is None else int((~r.converged).sum())
        if failed:
            notes.append(f"{label}, {r.protocol}: {failed} of {len(r.correct)} episodes did not converge.")
    commits = sorted({r.commit or "unknown" for r in results})
    changes = " (+: with uncommitted changes)" if any(c.endswith("+") for c in commits) else ""
    return [*notes, f"Commit {_join(commits)}{changes}."]


def _marks(results: list[Result]) -> dict[str, str]:
    """Run key -> mark, for the results of one column."""
    groups = defaultdict(list)
    for result in results:
        groups[result.fingerprint].append(result)
    marks: dict[str, str] = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        best = max(group, key=lambda r: r.accuracy.mean)
        tied = [r for r in group if r is not best and not compare(best, r).significant]
        marks |= {r.record.key: TIED for r in [best, *tied]} if tied else {best.record.key: BEST}
    return marks


def _record(result: Result, mark: str) -> dict:
    """One row of the long form."""
    summary = result.summary()
    accuracy, half = summary.pop("accuracy"), summary.pop("interval95")
    return {"run": result.record.key, "protocol": result.protocol, "accuracy_percent": 100 * accuracy,
            "half_width_percent": 100 * half, "mark": mark, **result.record.to_dict(), **summary}


def _at_or_below_prototypes(result: Result, results: Sequence[Result]) -> bool:
    """Whether a plain nearest prototype of the same features and episodes has at least the mean of `result`."""
    def features(r: Result) -> tuple:
        return r.fingerprint, *(result_field(r, name) for name in ("backbone", "weights", "backbone_options", "crops"))

    return result.record.method not in _PROTOTYPES and any(
        r.record.method in _PROTOTYPES and features(r) == features(result) and r.accuracy.mean >= result.accuracy.mean
        for r in results)


def _subject(carriers: list[Result], results: Sequence[Result], named: bool = False) -> str:
    """The shortest description of exactly `carriers`; nothing for all results, unless they are to be `named`."""
    if len(carriers) == len(results) and not named:
        return ""
    for name in ("backbone", "dataset", "method"):
        values = {result_field(r, name) for r in carriers}
        if len(carriers) == sum(result_field(r, name) in values for r in results):
            return _join(sorted(values))
    keys = {r.record.key for r in carriers}
    return _join(n for n, r in zip(distinct_labels(results), results, strict=True) if r.record.key in keys)


def _join(values: Iterable) -> str:
    return ", ".join(map(str, values))
