"""Which column of somebody else's table is meant."""

from __future__ import annotations

from collections.abc import Sequence

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
