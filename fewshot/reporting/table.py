"""A finished table, and its forms: terminal, Markdown, LaTeX, HTML, CSV, JSON, data frame."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

BEST, TIED = "best", "tied"


@dataclass(frozen=True)
class Cell:
    """A mean and its half width (NaN if not known), a mark (BEST, TIED or none), the key of the run(s). Printed times
    `factor` with `digits` decimals, fractions as percent where nothing else is said; `signed`: with `+` before a positive
    mean; `floor`: a mean too small for these decimals is printed as below the smallest one, as p-values are."""

    mean: float
    half_width: float = float("nan")
    mark: str = ""
    key: str = ""
    factor: float = 100
    digits: int = 2
    signed: bool = False
    floor: bool = False


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
        import pandas as pd

        if not wide:
            return pd.DataFrame([{key: json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
                                  for key, value in record.items()} for record in self.records])
        rows = []
        for label, cells in zip(self.labels, self.cells, strict=True):
            row: dict[str, str | float] = dict(zip(self.headings, label, strict=True))
            for j, (column, cell) in enumerate(zip(self.columns, cells, strict=True)):
                filled = [other for line in self.cells if (other := line[j]) is not None]
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
            return self._text(cell, style).translate({ord(c): _LATEX[c] for c in "±−–<"})

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
                attributes = f' data-sort="{cell.mean:.9g}" title="run {escape(cell.key)}"' if cell else ""
                parts += f'<td class="number"{attributes}>{self._text(cell, style, _whole_halves)}</td>'
            body.append(f"<tr>{parts}</tr>")
        table = (f'<div class="scroll" tabindex="0" role="region" aria-label="table">'
                 f'<table class="{escape(css_class)}"><thead><tr>{head}</tr></thead>\n<tbody>'
                 + "\n".join(body) + "</tbody></table></div>\n")
        items = "".join(f"<li>{escape(note)}</li>" for note in self.all_notes({BEST: "Bold", TIED: "†"}))
        return f'{table}<ul class="notes">{items}</ul>' if notes else table

    _repr_html_ = to_html

    def print(self, console: Console | None = None, keys: bool = False) -> None:
        """To the terminal; bold cells also carry `*`, so that a redirected copy keeps the mark. Columns that do not fit
        beside each other follow in further tables.

        keys   also name the beginnings of the runs' keys that tell them apart, as other commands take them
        """
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
        for line in self._key_lines(short=True) if keys else ():
            console.print(Text(line), style="dim")

    def all_notes(self, symbols: dict[str, str]) -> list[str]:
        """The legend of the marks that occur, then the notes."""
        present = {cell.mark for cells in self.cells for cell in cells if cell}
        return [f"{symbols[mark]}: {text}" for mark, text in self.legend.items() if mark in present] + list(self.notes)

    def _text(self, cell: Cell | None, style: dict[str, str], written: Callable[[str], str] = str) -> str:
        if cell is None:
            return "–"
        sign = "+" if self.signed or cell.signed else ""
        number = f"{cell.factor * cell.mean:{sign}.{cell.digits}f}".replace("-", "−")
        if cell.floor and cell.factor * cell.mean < 10**-cell.digits:
            number = f"<{10**-cell.digits:.{cell.digits}f}"
        if cell.half_width == cell.half_width:  # not NaN
            number += f" ± {cell.factor * cell.half_width:.{cell.digits}f}"
        return style.get(cell.mark, "{}").format(written(number))

    def _key_lines(self, short: bool = False) -> list[str]:
        every = {cell.key for cells in self.cells for cell in cells if cell}
        length = next(n for n in range(8, 65) if len({key[:n] for key in every}) == len(every)) if short else None
        return [f"run {cell.key[:length]}: {', '.join(label)}, {column}"
                for label, cells in zip(self.labels, self.cells, strict=True)
                for column, cell in zip(self.columns, cells, strict=True) if cell and cell.key]


def _whole_halves(number: str) -> str:
    """HTML of `81.23 ± 0.19` that breaks before the ± only."""
    mean, plus, half = escape(number).partition("± ")
    return f'{mean}<span style="white-space:nowrap">± {half}</span>' if plus else mean


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
