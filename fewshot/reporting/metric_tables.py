"""Tables beside accuracy: pairs with corrected p-values, ranks, probability and open-set measures, training seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.evaluation.decisions import KEEP
from fewshot.evaluation.measures import calibration_error, macro_accuracy
from fewshot.evaluation.result import Result, compare
from fewshot.reporting.accuracy_tables import result_notes
from fewshot.reporting.naming import distinct_labels, episode_fields, in_protocol, natural, unique_results
from fewshot.reporting.table import BEST, TIED, Cell, Table
from fewshot.statistics import class_interval, holm, mean_interval, rank, seed_spread, worst_share

_UNSEEDED = ("weights", "data", "base")  # what another training seed changes in a run


def pairs_table(results: Iterable[Result]) -> Table:
    """Every pair of results on the same episodes: the difference with its intervals over episodes and over classes, the
    chance that the first is better on an episode (ties half), and p-values of the paired t-test as they are and after
    Holm's correction for the number of pairs. Raises FewshotError for results on different episodes."""
    results = sorted(unique_results(results), key=lambda r: -r.accuracy.mean)
    if len(results) < 2:
        raise FewshotError("1 result; a comparison needs at least 2 results on the same episodes")
    labels = distinct_labels(results)
    pairs = list(itertools.combinations(range(len(results)), 2))
    found = [compare(results[i], results[j]) for i, j in pairs]
    corrected = holm([c.p_value for c in found])
    rows, records = [], []
    for (i, j), comparison, p in zip(pairs, found, corrected, strict=True):
        a, b, gap = results[i], results[j], comparison.difference
        key, mark = f"{a.record.key} - {b.record.key}", "" if p < 0.05 else TIED
        wide = _over_classes(a, b)
        rows.append((Cell(gap.mean, gap.half_width, mark, key, signed=True),
                     None if wide is None else Cell(gap.mean, wide, "", key, signed=True),
                     Cell(comparison.probability, key=key),
                     *(Cell(float(value), key=key, factor=1, digits=4, floor=True) for value in (comparison.p_value, p))))
        records.append({"a": labels[i], "b": labels[j], "difference_percent": 100 * gap.mean,
                        "half_width_percent": 100 * gap.half_width,
                        "half_width_classes_percent": None if wide is None else 100 * wide,
                        "probability_better": comparison.probability, "share_better": comparison.better,
                        "share_ties": comparison.ties, "p_value": comparison.p_value, "p_holm": float(p),
                        "episodes": gap.n, "fingerprint": a.fingerprint, "run_a": a.record.key, "run_b": b.record.key})
    notes = [f"First minus second in percentage points ± half width of the 95 % interval over {len(results[0].correct)} "
             "paired episodes (Student t); the column over classes covers the choice of the novel classes, too (leaving out "
             "one class at a time).",
             "P(better): how often the first is better on an episode, in percent, ties counted half. p: paired t-test; p "
             f"(Holm): corrected for the {_counted(len(pairs), 'pair')} of this table."]
    return Table(("first", "second"), tuple((labels[i], labels[j]) for i, j in pairs),
                 ("difference", "over classes", "P(better)", "p", "p (Holm)"), tuple(rows),
                 {TIED: "not told apart at the level 0.05 after Holm's correction."}, tuple(notes), tuple(records))


def ranks_table(results: Iterable[Result]) -> Table:
    """Mean ranks (1 is best) of methods over episodes, where all results are on the same ones, else over protocols and data
    sets. Every method must have a result on each; methods within the critical difference of the best are marked."""
    results = unique_results(results)
    groups: dict[str, dict[str, Result]] = defaultdict(dict)
    for label, result in zip(distinct_labels(results, episode_fields()), results, strict=True):
        if label in groups[result.fingerprint]:
            raise FewshotError(f"two results of {label} on the same episodes; rank one of them")
        groups[result.fingerprint][label] = result
    names = sorted({label for group in groups.values() for label in group}, key=natural)
    for group in groups.values():
        if missing := [name for name in names if name not in group]:
            one = next(iter(group.values()))
            raise FewshotError(f"no result of {missing[0]} on {one.data_name}, {one.protocol}, seed "
                               f"{one.record.seed}; ranks need every method on the same episodes of every protocol")
    if len(groups) == 1:
        values = np.stack([next(iter(groups.values()))[name].correct.numpy() for name in names])
    else:
        values = np.array([[group[name].accuracy.mean for group in groups.values()] for name in names])
    found = rank(values)
    best = min(found.ranks)
    near = [r - best <= found.critical_difference for r in found.ranks]
    order = sorted(range(len(names)), key=lambda k: found.ranks[k])
    mark = {k: "" if not near[k] else BEST if sum(near) == 1 else TIED for k in order}
    cells = tuple((Cell(found.ranks[k], mark=mark[k], factor=1), Cell(float(values[k].mean()))) for k in order)
    unit = "episodes" if len(groups) == 1 else "protocols and data sets, by their mean accuracy"
    notes = [f"Ranks within each of {found.blocks} {unit}; 1 is best, ties share their mean rank. Mean ranks that differ by "
             f"more than the critical difference {found.critical_difference:.2f} are told apart (Nemenyi, level 0.05). "
             f"Friedman's test of no difference: p = {found.p_value:.2g}."]
    records = tuple({"method": names[k], "mean_rank": found.ranks[k], "mean_accuracy_percent": 100 * float(values[k].mean()),
                     "critical_difference": found.critical_difference, "p_friedman": found.p_value,
                     "blocks": found.blocks} for k in order)
    return Table(("method",), tuple((names[k],) for k in order), ("mean rank", "mean accuracy"), cells,
                 {BEST: "told apart from all others.", TIED: "within the critical difference of the best mean rank."},
                 tuple(notes), records)


def metrics_table(results: Iterable[Result]) -> Table:
    """Accuracy, its mean over classes, the worst tenth of the episodes and whatever else was measured (metrics=True,
    calibrate, open queries), each with its interval over episodes where it is a mean over them."""
    results = unique_results(results)
    rows = [_row(result) for result in results]
    columns = [name for name in _COLUMNS if any(name in row for row in rows)]
    labels = [(label, r.protocol) for label, r in zip(distinct_labels(results, in_protocol()), results, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (natural(labels[i][1]), natural(labels[i][0])))
    cells = tuple(tuple(rows[i].get(name) for name in columns) for i in order)
    notes = result_notes(results) + [_COLUMNS[name] for name in columns if _COLUMNS[name]]
    if not any("NLL" in row for row in rows):
        notes.append("Probabilities were not measured: evaluate with --metrics.")
    notes += [f"{labels[i][0]}, {labels[i][1]}: temperature {float(results[i].measures['temperature']):.3g}."
              for i in order if "temperature" in results[i].measures]
    records = tuple({"run": results[i].record.key, "protocol": labels[i][1], "method": labels[i][0],
                     **{name: rows[i][name].mean for name in columns if name in rows[i]}} for i in order)
    return Table(("method", "protocol"), tuple(labels[i] for i in order), tuple(columns), cells, {}, tuple(notes), records)


def seeds_table(results: Iterable[Result]) -> Table:
    """Results that differ only in their weights, such as those of several training seeds: mean over seeds with its
    interval, spread between seeds, lowest and highest. Raises FewshotError where a setting has one seed only."""
    results = unique_results(results)
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        rest = {k: v for k, v in result.record.to_dict().items() if k not in _UNSEEDED}
        groups[json.dumps(rest, sort_keys=True)].append(result)
    firsts = [dataclasses.replace(group[0], record=group[0].record.changed(**dict.fromkeys(_UNSEEDED)))
              for group in groups.values()]
    labels = [(label, r.protocol) for label, r in zip(distinct_labels(firsts, in_protocol()), firsts, strict=True)]
    cells, records = [], []
    for (label, protocol), group in zip(labels, groups.values(), strict=True):
        if len(group) < 2:
            raise FewshotError(f"{label}, {protocol}: 1 result; a spread over training seeds needs at least 2 that differ "
                               "only in their weights: name the results of several seeds")
        found = seed_spread([r.accuracy.mean for r in group])
        widest = max(r.accuracy.half_width for r in group)
        numbers = (found.spread, found.lowest, found.highest, widest)
        cells.append((Cell(found.interval.mean, found.interval.half_width), *map(Cell, numbers),
                      Cell(len(group), factor=1, digits=0)))
        records.append({"method": label, "protocol": protocol, "accuracy_percent": 100 * found.interval.mean,
                        "half_width_percent": 100 * found.interval.half_width, "seeds": len(group),
                        "spread_percent": 100 * found.spread, "lowest_percent": 100 * found.lowest,
                        "highest_percent": 100 * found.highest, "runs": " ".join(r.record.key for r in group)})
    notes = ["Mean accuracy over training seeds in percent ± half width of its 95 % interval (Student t over seeds); it "
             "covers the training seed, not the choice of classes. Spread: standard deviation between seeds. Over episodes: "
             "the widest half width of a single seed's interval; this error is part of the spread.",
             *result_notes(results)[1:]]
    return Table(("method", "protocol"), tuple(labels), ("mean over seeds", "spread", "lowest", "highest", "over episodes",
                 "seeds"), tuple(cells), {}, tuple(notes), tuple(records))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_CALIBRATED = "with the temperature fitted on validation episodes"
# Heading -> what it means, in the order of the columns.
_COLUMNS = {
    "accuracy": "", "macro accuracy": "Macro accuracy: mean over the classes that have queries, then over episodes.",
    "worst tenth": "Worst tenth: mean accuracy of the tenth of the episodes with the lowest.",
    "NLL": "NLL: mean negative log-likelihood of the true class (natural logarithm). Brier: mean squared distance of the "
           "probabilities to the truth, 0 to 2. ECE: expected calibration error over all queries, 15 bins, in percent.",
    "Brier": "", "ECE": "", "NLL (calibrated)": f"Calibrated: {_CALIBRATED}.", "Brier (calibrated)": "",
    "ECE (calibrated)": "",
    "AUROC (logit)": "AUROC: chance in percent that a query of a class of the episode scores above one of another class; "
                     "AUPR: average precision of finding the others. Score: highest logit or highest probability.",
    "AUROC (prob.)": "", "AUPR (logit)": "", "AUPR (prob.)": "",
    "kept right (logit)": "Kept right: right answers among the queries kept when as many of the lowest score are rejected "
                          "as there are queries of other classes.",
    "kept right (prob.)": "",
    "target": "Coverage: share of queries whose set holds the true class, to be the target; thresholds from validation "
              "episodes. Set size: mean number of classes in a set. Not unknown: share of queries of the episode's classes "
              f"that are not called unknown, chosen to be {100 * KEEP:g} on validation classes; others found: share of the "
              "other queries that are.",
    "coverage": "", "set size": "", "not unknown": "", "others found": ""}


def _row(result: Result) -> dict[str, Cell]:
    measures, key = result.measures, result.record.key

    def mean(values: Tensor | Sequence[float], factor: float = 100, digits: int = 2) -> Cell:
        found = mean_interval(values)
        return Cell(found.mean, found.half_width, "", key, factor, digits)

    worst = worst_share(result.correct)
    row = {"accuracy": mean(result.correct), "worst tenth": Cell(worst.mean, worst.half_width, "", key)}
    if "class_total" in measures:
        row["macro accuracy"] = mean(macro_accuracy(measures["class_correct"], measures["class_total"]))
    for name, ending in (("", ""), ("_calibrated", " (calibrated)")):
        if f"nll{name}" in measures:
            row[f"NLL{ending}"] = mean(measures[f"nll{name}"], 1, 4)
            row[f"Brier{ending}"] = mean(measures[f"brier{name}"], 1, 4)
            row[f"ECE{ending}"] = Cell(calibration_error(measures[f"calibration{name}"]), key=key)
    for name, heading in (("auroc", "AUROC"), ("aupr", "AUPR"), ("accepted", "kept right")):
        for score, ending in (("logit", "logit"), ("probability", "prob.")):
            if f"{name}_{score}" in measures:
                row[f"{heading} ({ending})"] = mean(measures[f"{name}_{score}"])
    if "coverage_target" in measures:
        row["target"] = Cell(float(measures["coverage_target"]), key=key)
        row["set size"] = mean(measures["set_size"], 1)
        for name, heading in (("coverage", "coverage"), ("known_kept", "not unknown"), ("open_found", "others found")):
            if name in measures:
                row[heading] = mean(measures[name])
    return row


def _over_classes(a: Result, b: Result) -> float | None:
    """Half width of the difference over classes; None where it cannot be told."""
    classes = a.measures.get("classes", b.measures.get("classes"))
    if classes is None:
        return None
    try:
        return class_interval(a.correct - b.correct, classes).half_width
    except FewshotError:
        return None
