"""The answers of a classifier to be looked through, the least certain first, and corrections as they come back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fewshot.core.checked import check_number
from fewshot.core.columns import read_table
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_together
from fewshot.labelling.answers import LOW, Answers
from fewshot.labelling.contact_sheet import SHOWN, card, items, page, told_of_cards, unreadable

COLUMNS = ("file", "predicted", "probability", "correction", "folder", "sha256")  # of corrections.csv, also by the page


@dataclass(frozen=True, eq=False)
class Review(Answers):
    """Answers of a classifier, with what it takes to bring corrections back.

    folder   that the files lie below, as it was given
    sha256   [Q] of the pixels, which say whether a file is still the same image
    """

    folder: str
    sha256: tuple[str, ...]

    @property
    def least_certain(self) -> list[int]:
        """[Q] rows by the probability of the predicted class, the lowest first."""
        return self.confidence.argsort(stable=True).tolist()

    def save(self, folder: str | Path, low: float = LOW) -> tuple[Path, Path, Path]:
        """Write predictions.csv; review.html, where corrections are picked; and corrections.csv, to be filled in by hand.

        Both of the latter have the least certain answers first; those below `low` are marked in the page.
        """
        shown = review_page(self, low)  # first: a mistake leaves no file
        table, page, empty = (Path(folder) / name for name in ("predictions.csv", "review.html", "corrections.csv"))
        write_together({table: self.to_csv().encode(), page: shown.encode(), empty: self._to_fill_in().encode()})
        return table, page, empty

    def _to_fill_in(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        answers = list(self)
        writer.writerow(COLUMNS)
        writer.writerows([answers[row][0], answers[row][1], f"{answers[row][2]:.6f}", "", self.folder, self.sha256[row]]
                         for row in self.least_certain)
        return text.getvalue()


@dataclass(frozen=True)
class Correction:
    """One image, a file below a folder, and the class that it is. sha256: of its pixels, "" where that is not known."""

    folder: Path
    file: str
    name: str
    sha256: str = ""


def read_corrections(path: str | Path, images: str | Path | None = None) -> list[Correction]:
    """The rows of a CSV file whose correction is not empty, with columns file and correction, and perhaps folder and sha256.

    images   folder that the files lie below, in place of that of the rows

    Raises FewshotError for other files.
    """
    columns, rows = read_table(Path(path), "corrections")
    if rows and not {"file", "correction"} <= set(columns):
        raise FewshotError(f"{path} has columns {', '.join(columns)}; expected file and correction, and folder and sha256 "
                           "if they are known")
    return [Correction(Path(images if images is not None else row.get("folder", "")).expanduser(), row["file"],
                       row["correction"], row.get("sha256", "")) for _, row in rows if row["correction"]]


def review_page(found: Review, low: float) -> str:
    """The page: all images, the least certain first, each with a choice of classes; the corrections are saved as CSV.

    Of more than 2000 images the least certain are shown. Raises FewshotError for a `low` outside 0 .. 1.
    """
    check_number("low", low, 0, 1)
    rows = found.least_certain[:SHOWN]
    marked = (found.confidence < low).tolist()
    facts = [f"{len(found)} images, {len(found.class_names)} classes; {found.description}, {found.setting}.",
             "The least certain come first. Pick the class of an image to correct its answer or to confirm it: it "
             "becomes an example of that class. Save the corrections, and hand the file to the classifier.",
             f"{sum(marked)} of {len(found)} answers are marked as low: their probability is below {100 * low:g}\u00a0%.",
             *told_of_cards(found)]
    if len(rows) < len(found):
        facts.append(f"The {len(rows)} least certain images are shown; corrections.csv has all of them.")
    if found.unreadable:
        facts.append(f"{len(found.unreadable)} more could not be read; they are listed at the end.")
    cards = "\n".join(card(found, row, marked[row]) for row in rows)
    answers = list(found)
    known = {row: [answers[row][0], answers[row][1], f"{answers[row][2]:.6f}", found.sha256[row]] for row in rows}
    data = json.dumps({"columns": COLUMNS, "folder": found.folder, "rows": known}).replace("<", "\\u003c")
    return page("Review", "review.js", items((*facts, *found.notes)), _controls(found.class_names),
                f'<ul class="cards" id="together">{cards}</ul>', unreadable(found),
                f'<script type="application/json" id="data">{data}</script>')


def _controls(class_names: Iterable[str]) -> str:
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in class_names)
    return f"""<form class="controls" hidden>
<label>Answers <select name="predicted"><option value="">all</option>{options}</select></label>
<label><input type="checkbox" name="low"> only low ones</label>
<button name="save" disabled>Save corrections</button>
</form>
<template id="choice"><select aria-label="class of this image"><option value="">it is …</option>{options}
</select></template>"""
