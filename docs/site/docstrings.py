"""A griffe extension that shows docstrings of this project as HTML: paragraphs, aligned lists of parameters, formulas.

The docstrings are written to be read in a terminal:

    name    what it is, going on
            below its description
    other   the next one

becomes a definition list, an indented block stays as it is, and other lines are paragraphs. A name in backquotes that the
API pages hold becomes a link.
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path

import griffe

_ITEM = re.compile(r"(?P<term>\S(?:.*?\S)?)(?P<gap> {2,})(?P<text>\S.*)")
_INIT = Path(__file__).parents[2] / "fewshot" / "__init__.py"


def _public_names() -> frozenset[str]:
    block = next(node for node in ast.parse(_INIT.read_text("utf-8")).body if isinstance(node, ast.If))
    return frozenset(alias.name for node in block.body for alias in node.names)


PUBLIC = _public_names()


class Docstrings(griffe.Extension):
    """Every docstring is turned into HTML when griffe meets it."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_html(obj.docstring.value)


def to_html(text: str) -> str:
    """A docstring, without the indentation of its code, as one HTML block."""
    parts, lines = [], text.rstrip().splitlines()
    while lines:
        if not lines[0].strip():
            del lines[0]
            continue
        size = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
        block, lines = lines[:size], lines[size:]
        if all(line.startswith(" ") for line in block):
            parts.append(f"<pre><code>{html.escape(_dedent(block), quote=False)}</code></pre>")
        elif _ITEM.fullmatch(block[0]):
            parts.append(_definitions(block))
        else:
            parts.append(f"<p>{_inline(' '.join(line.strip() for line in block))}</p>")
    return '<div class="docstring">' + "".join(parts) + "</div>"


def _definitions(block: list[str]) -> str:
    """`name  description` with continuation lines below the description. The first line says in which column that starts."""
    column = _ITEM.fullmatch(block[0]).start("text")
    items: list[tuple[str, list[str]]] = []
    for line in block:
        if line.startswith(" "):  # an item of a list within the description has a line of its own
            items[-1][1].append(("\n" if re.match(r' +"\w+":', line) else "") + line.strip())
        elif line[column - 1 : column] == " " and line[column : column + 1] != " ":
            items.append((line[:column].strip(), [line[column:]]))
        elif found := _ITEM.fullmatch(line):  # a name too long for the column
            items.append((found["term"], [found["text"]]))
        else:
            items.append((line, []))
    rows = []
    for term, texts in items:
        text = _inline(" ".join(texts)).replace(" \n", "<br>")
        rows.append(f"<dt>{_inline(term)}</dt><dd>{text}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _inline(text: str) -> str:
    """Text with `code` in backquotes."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backquote alone is a character like others
        return html.escape(text, quote=False)
    return "".join(_code(piece) if i % 2 else html.escape(piece, quote=False) for i, piece in enumerate(pieces))


def _code(text: str) -> str:
    shown = f"<code>{html.escape(text, quote=False)}</code>"
    name = re.fullmatch(r"(?:fewshot\.)?(?P<name>[A-Za-z_][\w.]*)", text)
    if name and (text.startswith("fewshot.") or name["name"].split(".")[0] in PUBLIC):
        return f'<autoref identifier="fewshot.{name["name"]}" optional>{shown}</autoref>'
    return shown


def _dedent(block: list[str]) -> str:
    margin = min(len(line) - len(line.lstrip()) for line in block)
    return "\n".join(line[margin:] for line in block)
