"""Somebody else's tables: reading them, and which column is meant."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message


def picked(what: str, given: str | None, known: Sequence[str], likely: Sequence[str], where: str, remedy: str) -> str:
    """The one of the columns `known` that `given` names, else the only one with a likely name, capitals or not. FewshotError
    with the remedy where there is none, or several."""
    if given is not None:
        if given not in known:
            raise FewshotError(unknown_message(f"column of {where}", given, list(known)))
        return given
    hits = [name for name in known if name.lower() in likely]
    if len(hits) == 1:
        return hits[0]
    found = f"several columns that may be the {what} ({', '.join(hits)})" if hits else f"no column that may be the {what}"
    raise FewshotError(f"{where} has {found}; {remedy}, among {', '.join(known)}")


def read_table(path: Path, kind: str, delimiter: str = ",") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """(columns, [(line, column -> text)]) of a CSV file with a header; `kind` is what it is, for messages."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, restkey="", restval="", delimiter=delimiter)
            rows = [(reader.line_num, {str(name): str(text).strip() for name, text in row.items()}) for row in reader]
            return [str(name) for name in reader.fieldnames or ()], rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"cannot read the {kind} {path} ({error}); give a CSV file in UTF-8 with a header") from None
