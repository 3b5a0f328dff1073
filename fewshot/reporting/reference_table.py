"""Methods beside references: accuracy with default and tuned hyper-parameters, and what is gained over given methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fewshot.core.errors import FewshotError
from fewshot.evaluation.result import Result, compare
from fewshot.reporting.accuracy_tables import result_notes
from fewshot.reporting.table import TIED, Cell, Table


def reference_table(default: Iterable[Result], tuned: Iterable[Result], references: Sequence[str],
                    reasons: Mapping[str, str] | None = None) -> Table:
    """One row a method, all on the same episodes: accuracy with the defaults and with tuned hyper-parameters, and the paired
    difference of the better founded of the two (tuned where there is one) to every reference.

    references   methods of `default`; "best inductive" stands for the inductive method of the highest mean, tuned where it
                 is, and a reference is itself compared at its tuned values
    reasons      method -> sentence about its search, put into the notes

    Raises FewshotError for two results of one method, for a reference without a result, and for results on different
    episodes.
    """
    plain, chosen = _by_method(default), _by_method(tuned)
    best = {name: chosen.get(name, result) for name, result in plain.items()}
    inductive = [r for r in best.values() if r.setting == "inductive"]
    against = {}
    for name in references:
        if name == "best inductive":
            if not inductive:
                raise FewshotError("no result of an inductive method to compare with; evaluate one, such as protonet")
            top = max(inductive, key=lambda r: r.accuracy.mean)
            against[f"− best inductive ({top.record.method})"] = top
        elif name in best:
            against[f"− {name}"] = best[name]
        else:
            raise FewshotError(f"no result of the reference {name}; there are results of {', '.join(sorted(best))}")
    order = sorted(best, key=lambda name: -best[name].accuracy.mean)
    cells, records = [], []
    for name in order:
        gaps = [None if r is best[name] else compare(best[name], r) for r in against.values()]
        cells.append((_cell(plain[name]), _cell(chosen.get(name)),
                      *(None if gap is None else
                        Cell(gap.difference.mean, gap.difference.half_width, "" if gap.significant else TIED,
                             best[name].record.key, signed=True) for gap in gaps)))
        records += [_record(r, which) for r, which in ((plain[name], "default"), (chosen.get(name), "tuned")) if r]
    used = list({r.record.key: r for r in [*plain.values(), *chosen.values()]}.values())
    notes = ["Differences are paired, of the tuned result where there is one, in percentage points ± half width of the 95 % "
             "interval.", *(f"{name}: {reason}" for name, reason in (reasons or {}).items() if name in best)]
    legend = {TIED: "the interval of the difference includes zero (no correction for several comparisons)."}
    return Table(("method", "setting"), tuple((name, best[name].setting) for name in order),
                 ("default", "tuned on validation classes", *against), tuple(cells), legend,
                 (*notes, *result_notes(used)), tuple(records))


def _by_method(results: Iterable[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result.record.method in found:
            raise FewshotError(f"runs {found[result.record.method].record.key} and {result.record.key} are both of "
                               f"{result.record.method}; give one of them")
        found[result.record.method] = result
    return found


def _cell(result: Result | None) -> Cell | None:
    return None if result is None else Cell(result.accuracy.mean, result.accuracy.half_width, "", result.record.key)


def _record(result: Result, which: str) -> dict:
    return {"method": result.record.method, "parameters": which, "accuracy_percent": 100 * result.accuracy.mean,
            "half_width_percent": 100 * result.accuracy.half_width, "run": result.record.key}
