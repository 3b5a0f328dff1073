"""Tables of results: every number with its interval, its episodes and what it assumes."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fewshot.errors import FewshotError
from fewshot.evaluate import Result, compare
from fewshot.labels import distinct_labels, natural, result_field, separating_fields, unique_results
from fewshot.registry import unknown_message

BEST, TIED = "best", "tied"


@dataclass(frozen=True)
class Cell:
    """A mean and its half width (NaN if not known), a mark (BEST, TIED or none), the key of the run(s). Printed times
    `factor` with `digits` decimals, fractions as percent where nothing else is said; `signed`: with `+` before a positive
    mean."""

    mean: float
    half_width: float = float("nan")
    mark: str = ""
    key: str = ""
    factor: float = 100
    digits: int = 2
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """A finished table. `cells[i][j]` belongs to row label `labels[i]` and column `columns[j]`; None is an empty cell.

    headings  names of the parts of a row label;  labels  one tuple a row
    legend    mark -> what it means;  notes  sentences below the table
    records   long form, one dictionary a number;  signed  every cell is a difference
    together  so many neighbouring columns are not separated on a narrow terminal
    """

    headings: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    legend: dict[str, str]
    notes: tuple[str, ...]
    records: tuple[dict, ...]
    signed: bool = False
    together: int = 1

    def to_dataframe(self, wide: bool = False) -> pd.DataFrame:
        """Long form: one row a number with all its fields. Wide: the table's shape, with the columns `accuracy_percent`
        (or `difference_percent`), `half_width_percent`, `mark` and `run` for each column; `value` and `half_width` where
        a column is not in percent. Numbers are numeric."""
        if not wide:
            return pd.DataFrame([{key: json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
                                  for key, value in record.items()} for record in self.records])
        rows = []
        for label, cells in zip(self.labels, self.cells, strict=True):
            row = dict(zip(self.headings, label, strict=True))
            for j, (column, cell) in enumerate(zip(self.columns, cells, strict=True)):
                filled = [line[j] for line in self.cells if line[j]]
                percent = all(other.factor == 100 for other in filled)
                differences = self.signed or any(other.signed for other in filled)
                quantity = ("difference_percent" if differences else "accuracy_percent") if percent else "value"
                row[f"{column} {quantity}"] = cell.factor * cell.mean if cell else float("nan")
                row[f"{column} half_width{'_percent' * percent}"] = cell.factor * cell.half_width if cell else float("nan")
                row[f"{column} mark"] = cell.mark if cell else ""
                row[f"{column} run"] = cell.key if cell else ""
            rows.append(row)
        return pd.DataFrame(rows)

    def to_csv(self, wide: bool = False) -> str:
        return self.to_dataframe(wide).to_csv(index=False)

    def to_json(self) -> str:
        """The long form as a list of objects; what is not known is null."""
        records = [{key: None if value != value else value for key, value in record.items()} for record in self.records]
        return json.dumps(records, indent=1, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        style = {BEST: "**{}**", TIED: "{} †"}
        grid = [[*map(_markdown, label), *(self._text(cell, style) for cell in cells)]
                for label, cells in zip(self.labels, self.cells, strict=True)]
        head = [_markdown(name) for name in (*self.headings, *self.columns)]
        widths = [max(len(row[i]) for row in [head, *grid]) for i in range(len(head))]
        texts = len(self.headings)
        rule = ["-" * w if i < texts else "-" * max(w - 1, 1) + ":" for i, w in enumerate(widths)]
        lines = ["| " + " | ".join(t.ljust(w) if i < texts else t.rjust(w)
                                   for i, (t, w) in enumerate(zip(row, widths, strict=True))) + " |"
                 for row in [head, rule, *grid]]
        notes = [f"- {_markdown(note)}" for note in self.all_notes({BEST: "Bold", TIED: "†"})]
        keys = [f"<!-- {line} -->" for line in self._key_lines()]
        return "\n".join([*lines, "", *notes, "", *keys]) + "\n"

    def to_latex(self) -> str:
        """A `table` environment for the booktabs package; notes follow the tabular, run keys stand in comments."""
        style = {BEST: r"\textbf{{{}}}", TIED: r"{}$^\dagger$"}

        def number(cell: Cell | None) -> str:
            return self._text(cell, style).translate({ord(c): _LATEX[c] for c in "±−–"})

        rows = [" & ".join([*map(_latex, label), *(number(cell) for cell in cells)])
                for label, cells in zip(self.labels, self.cells, strict=True)]
        head = " & ".join(map(_latex, (*self.headings, *self.columns)))
        notes = [_latex(note) for note in self.all_notes({BEST: "Bold", TIED: "†"})]
        return "\n".join([
            r"\begin{table}", r"\centering",
            r"\begin{tabular}{" + "l" * len(self.headings) + "r" * len(self.columns) + "}",
            r"\toprule", head + r" \\", r"\midrule", *(row + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}",
            r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", " \\par\n".join(notes), r"\end{minipage}",
            r"\end{table}", *(f"% {line}" for line in self._key_lines())]) + "\n"

    def to_html(self, css_class: str = "results", notes: bool = True) -> str:
        """A `<table>`, with its notes; `data-sort` holds the value to sort a cell by, `title` its run key."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.headings)
        head += "".join(f'<th scope="col" class="number">{_unbroken(name)}</th>' for name in self.columns)
        style = {BEST: "<strong>{}</strong>", TIED: "{} †"}
        body = []
        for label, cells in zip(self.labels, self.cells, strict=True):
            parts = "".join(f'<th scope="row">{escape(text)}</th>' for text in label)
            for cell in cells:
                attributes = f' data-sort="{cell.mean:.9f}" title="run {escape(cell.key)}"' if cell else ""
                parts += f'<td class="number"{attributes}>{self._text(cell, style)}</td>'
            body.append(f"<tr>{parts}</tr>")
        table = (f'<div class="scroll" tabindex="0" role="region" aria-label="table">'
                 f'<table class="{escape(css_class)}"><thead><tr>{head}</tr></thead>\n<tbody>'
                 + "\n".join(body) + "</tbody></table></div>\n")
        items = "".join(f"<li>{escape(note)}</li>" for note in self.all_notes({BEST: "Bold", TIED: "†"}))
        return f'{table}<ul class="notes">{items}</ul>' if notes else table

    _repr_html_ = to_html

    def print(self, console: Console | None = None) -> None:
        """To the terminal; bold cells also carry `*`, so that a redirected copy keeps the mark. Columns that do not fit
        beside each other follow in further tables."""
        console = console or Console()
        style = {BEST: "{} *", TIED: "{} †"}
        texts = [[self._text(cell, style) for cell in cells] for cells in self.cells]
        widths = [max(map(len, [*name.split(), *(row[j] for row in texts)])) for j, name in enumerate(self.columns)]
        room = console.width - 1 - sum(3 + max(map(len, [name, *parts])) for name, *parts in
                                       zip(self.headings, *self.labels, strict=True))
        start = 0
        while self.labels and start < len(self.columns):
            stop = start + self.together
            while stop < len(self.columns) and sum(3 + width for width in widths[start:stop + 1]) <= room:
                stop += 1
            table = RichTable()
            for name in self.headings:
                table.add_column(Text(name), overflow="fold")
            for name, width in zip(self.columns[start:stop], widths[start:stop], strict=True):
                table.add_column(Text(name), justify="right", overflow="fold", width=width)
            for label, cells, row in zip(self.labels, self.cells, texts, strict=True):
                bold = ("bold" if cell and cell.mark == BEST else "" for cell in cells[start:stop])
                table.add_row(*map(Text, label), *map(Text, row[start:stop], bold))
            console.print(table)
            start = stop
        for note in self.all_notes({BEST: "*", TIED: "†"}):
            console.print(Text(note), style="dim")

    def all_notes(self, symbols: dict[str, str]) -> list[str]:
        """The legend of the marks that occur, then the notes."""
        present = {cell.mark for cells in self.cells for cell in cells if cell}
        return [f"{symbols[mark]}: {text}" for mark, text in self.legend.items() if mark in present] + list(self.notes)

    def _text(self, cell: Cell | None, style: dict[str, str]) -> str:
        if cell is None:
            return "–"
        sign = "+" if self.signed or cell.signed else ""
        number = f"{cell.factor * cell.mean:{sign}.{cell.digits}f}".replace("-", "−")
        if cell.half_width == cell.half_width:  # not NaN
            number += f" ± {cell.factor * cell.half_width:.{cell.digits}f}"
        return style.get(cell.mark, "{}").format(number)

    def _key_lines(self) -> list[str]:
        return [f"run {cell.key}: {', '.join(label)}, {column}"
                for label, cells in zip(self.labels, self.cells, strict=True)
                for column, cell in zip(self.columns, cells, strict=True) if cell and cell.key]


def results_table(results: Iterable[Result], rows: Sequence[str] = ("backbone", "method"),
                  columns: str | Sequence[str] = "protocol", interval: str = "episodes") -> Table:
    """Accuracy ± half width of the 95 % interval, in percent.

    interval        "episodes", or "classes": how the number would move with other novel classes, too
    rows, columns   run settings, "protocol" or "setting". Settings that tell results apart and are in neither become
                    further row headings, so a cell never hides a choice; "setting" is always shown.

    Within a column, results on the same episodes (equal fingerprints) are compared by their paired differences to the
    best mean: it is bold when all those intervals exclude zero, otherwise it and all results whose interval includes
    zero carry a dagger. Raises FewshotError without results and for unknown fields.
    """
    if interval not in ("episodes", "classes"):
        raise FewshotError(unknown_message("interval", interval, ["episodes", "classes"]))
    results = unique_results(results)
    rows, columns = tuple(rows), (columns,) if isinstance(columns, str) else tuple(columns)
    added = separating_fields(results, (*rows, *columns), ("setting",))
    front = tuple(name for name in ("dataset", "split", "backbone") if name in added)
    headings = (*front, *rows, *(name for name in added if name not in front))
    headings += () if "setting" in (*headings, *columns) else ("setting",)
    grid: dict[tuple[str, ...], dict[str, Result]] = defaultdict(dict)
    for result in results:
        label, name = (tuple(result_field(result, n) for n in which) for which in (headings, columns))
        known = grid[label].setdefault(", ".join(name), result)
        if not known.correct.equal(result.correct):
            raise FewshotError(f"runs {known.run.key} and {result.run.key} differ in nothing that a table shows; "
                               "keep one of them")
    labels = sorted(grid, key=lambda label: [natural(text) for text in label])
    names = sorted({name for row in grid.values() for name in row}, key=natural)
    marks: dict[str, str] = {}
    for name in names:
        marks |= _marks([row[name] for row in grid.values() if name in row])
    over = {r.run.key: r.accuracy if interval == "episodes" else r.over_classes for r in results}
    cells = tuple(tuple(Cell(r.accuracy.mean, over[r.run.key].half_width, marks.get(r.run.key, ""), r.run.key)
                        if (r := grid[label].get(name)) else None for name in names) for label in labels)
    ordered = [grid[label][name] for label in labels for name in names if name in grid[label]]
    legend = {BEST: "best of the column on the same episodes; the 95 % interval of its paired difference to each other "
                    "one excludes zero (no correction for several comparisons).",
              TIED: "not distinguishable from the best of the column: the 95 % interval of the paired difference on "
                    "the same episodes includes zero (no correction for several comparisons)."}
    return Table(tuple(name.replace("_", " ") for name in headings), tuple(labels), tuple(names), cells, legend,
                 tuple(result_notes(results, interval)), tuple(_record(r, marks.get(r.run.key, "")) for r in ordered))


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
        cells[i][j] = Cell(gap.mean, gap.half_width, mark, f"{a.run.key} - {b.run.key}")
        cells[j][i] = Cell(-gap.mean, gap.half_width, mark, f"{b.run.key} - {a.run.key}")
        records.append({"a": labels[i], "b": labels[j], "difference_percent": 100 * gap.mean,
                        "half_width_percent": 100 * gap.half_width, "excludes_zero": found.significant,
                        "share_better": found.better, "share_ties": found.ties, "p_value": found.p_value,
                        "episodes": gap.n, "fingerprint": a.fingerprint, "run_a": a.run.key, "run_b": b.run.key})
    notes = [f"Accuracy of the row minus accuracy of the column, percentage points ± half width of the 95 % interval "
             f"over {len(results[0].correct)} paired episodes (Student t); it covers episode sampling.",
             *result_notes(results)[1:]]
    return Table(("row − column",), tuple((name,) for name in labels), tuple(labels), tuple(map(tuple, cells)),
                 {TIED: "the interval includes zero (no correction for several comparisons)."}, tuple(notes),
                 tuple(records), signed=True)


def result_notes(results: Sequence[Result], interval: str = "episodes") -> list[str]:
    """What a reader must know about these results, one sentence each."""
    sizes = sorted({len(r.correct) for r in results})
    if interval == "classes":
        covers = "; ".join(sorted({r.over_classes.covers for r in results}, key=natural))
        notes = [f"Accuracy in percent ± half width of the 95 % interval (leaving out one class at a time, {_join(sizes)} "
                 f"episodes); the interval covers {covers}, not the backbone or the training seed."]
    else:
        covers = " and ".join(sorted({r.accuracy.covers for r in results}))
        notes = [f"Accuracy in percent ± half width of the 95 % interval (Student t over {_join(sizes)} episodes); the "
                 f"interval covers {covers}, not the choice of classes, backbone or training seed."]
    sets = sorted({f"{r.run.dataset}, split {r.run.split}" for r in results})
    queries, seeds = sorted({r.run.queries for r in results}), sorted({r.run.seed for r in results})
    average = "" if all(r.run.query_distribution == "balanced" for r in results) else " (a mean where not balanced)"
    notes.append(f"Data: {'; '.join(sets)}. Queries per class: {_join(queries)}{average}. Episode seed {_join(seeds)}.")
    for protocol in sorted({r.run.protocol for r in results}, key=natural):
        if len({r.fingerprint for r in results if r.run.protocol == protocol}) > 1:
            notes.append(f"{protocol}: results are on different episodes; only those on the same ones are compared.")
    changed = sorted({f"{r.run.method}: {result_field(r, 'parameters')}" for r in results
                      if result_field(r, "parameters") != "defaults"}, key=natural)
    notes += [f"Parameters other than the defaults: {'; '.join(changed)}."] if changed else []
    assumptions = sorted({what for r in results for what in r.assumes})
    notes += [f"Assuming {what}: {_join(sorted({r.run.method for r in results if what in r.assumes}))}."
              for what in assumptions]
    uneven = {r.run.method for r in results if r.run.query_distribution != "balanced"}
    lacking = sorted({r.run.method for r in results if r.setting == "transductive"} - uneven)
    notes += [f"Transductive, evaluated with balanced queries only: {', '.join(lacking)}."] if lacking else []
    for text in dict.fromkeys(note for r in results for note in r.notes):
        subject = _subject([r for r in results if text in r.notes], results)
        notes.append(f"{'' if text.startswith(subject) else f'{subject}: '}{text}.")
    for r, label in zip(results, distinct_labels(results, ("protocol",)), strict=True):
        failed = 0 if r.converged is None else int((~r.converged).sum())
        if failed:
            notes.append(f"{label}, {r.run.protocol}: {failed} of {len(r.correct)} episodes did not converge.")
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
        marks |= {r.run.key: TIED for r in [best, *tied]} if tied else {best.run.key: BEST}
    return marks


def _record(result: Result, mark: str) -> dict:
    """One row of the long form."""
    summary = result.summary()
    accuracy, half = summary.pop("accuracy"), summary.pop("interval95")
    return {"run": result.run.key, "protocol": result.run.protocol, "accuracy_percent": 100 * accuracy,
            "half_width_percent": 100 * half, "mark": mark, **result.run.to_dict(), **summary}


def _subject(carriers: list[Result], results: Sequence[Result]) -> str:
    """Nothing for all results, else the shortest description of exactly `carriers`."""
    if len(carriers) == len(results):
        return ""
    for name in ("backbone", "dataset", "method"):
        values = {result_field(r, name) for r in carriers}
        if len(carriers) == sum(result_field(r, name) in values for r in results):
            return _join(sorted(values))
    keys = {r.run.key for r in carriers}
    return _join(n for n, r in zip(distinct_labels(results), results, strict=True) if r.run.key in keys)


def _join(values: Iterable) -> str:
    return ", ".join(map(str, values))


def _unbroken(text: str) -> str:
    """HTML that breaks lines at spaces only, not at hyphens."""
    return " ".join(f'<span style="white-space:nowrap">{escape(part)}</span>' for part in text.split(" "))


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<>`\[\]])", r"\\\1", text).replace("\n", " ")


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
          "†": r"$\dagger$", "−": "$-$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ",
          **{c: "\\" + c for c in "&%$#_{}"}}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
