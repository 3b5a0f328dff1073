"""The table of a search for hyper-parameters."""

from __future__ import annotations

from fewshot.reporting.naming import parameter_text
from fewshot.reporting.table import BEST, TIED, Cell, Table
from fewshot.tuning.search import TuneResult, candidate_numbers


def search_table(found: TuneResult) -> Table:
    """The candidates of a search by accuracy, with paired differences to the highest mean."""
    tried, results, gaps, reason = found.values, found.candidates, found.gaps, found.reason
    names, number = list(found.chosen), tried.index(found.chosen)
    order = sorted(range(len(results)), key=lambda i: -results[i].accuracy.mean)
    alone = sum(not gap.significant for gap in gaps) == 1
    labels, cells, records = [], [], []
    for i in order:
        accuracy, gap = results[i].accuracy, gaps[i].difference
        mark = "" if gaps[i].significant else BEST if alone else TIED
        role = ", ".join(["chosen"] * (i == number) + ["start"] * (i == 0))
        labels.append((*(str(tried[i][name]) for name in names), role))
        cells.append((Cell(accuracy.mean, accuracy.half_width, mark, results[i].record.key),
                      None if i == order[0] else Cell(gap.mean, gap.half_width, "", results[i].record.key)))
        records.append({**tried[i], "role": role, **candidate_numbers(results[i], gaps[i])})
    first = results[0].record
    notes = [f"{first.method} on {results[0].data_name}, split {first.split}, {first.protocol}: accuracy in percent ± "
             f"half width of the 95 % interval over {first.episodes} episodes, seed {first.seed}; the second column is the "
             "paired difference to the highest mean. Intervals cover episode sampling only.",
             f"Chosen: {reason}.",
             "The chosen accuracy was selected on these episodes, so it is optimistic: evaluate on the test classes."]
    failed = {i: int((~r.converged).sum()) for i, r in enumerate(results) if r.converged is not None}
    notes += [f"{parameter_text(tried[i])}: {count} of {first.episodes} episodes did not converge."
              for i, count in failed.items() if count]
    legend = {BEST: "highest mean, distinguishable from all others.", TIED: "the 95 % interval of the paired difference to "
              "the highest mean includes zero (no correction for several comparisons)."}
    return Table((*names, "role"), tuple(labels), ("accuracy", "difference"), tuple(cells), legend, tuple(notes),
                 tuple(records))
