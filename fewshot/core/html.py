"""Small pieces of HTML: what a notebook shows of a value. Without colours or fonts: they follow its theme, light or dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Markup(str):
    """HTML that is to stay as it is."""


def html_table(title: str, rows: Iterable[Sequence[object]], head: Sequence[str] = (), below: Iterable[str] = ()) -> str:
    """A `<table>` whose first column names its rows, `below` it sentences. All that is not Markup is escaped."""
    top = f"<thead><tr>{''.join(_cell(name, 'th') for name in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_cell(name, 'th')}{''.join(_cell(value, 'td') for value in values)}</tr>"
                   for name, *values in rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in below)
    return (f'<table><caption style="text-align: left">{escape(title)}</caption>{top}<tbody>{body}</tbody></table>'
            + (f"<ul>{notes}</ul>" if notes else ""))


def picture(image: Tensor, side: int, text: str) -> Markup:
    """uint8 [C, H, W] as an `<img>` at most `side` pixels wide; small drawings as PNG, which keeps their edges."""
    from PIL import Image

    pixels = image.movedim(0, 2).numpy()
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    shown.thumbnail((side, side), Image.Resampling.BILINEAR)
    form = "png" if max(image.shape[1:]) <= 64 else "jpeg"
    data = io.BytesIO()
    shown.save(data, form, quality=85)
    return Markup(f'<img src="data:image/{form};base64,{base64.b64encode(data.getvalue()).decode()}" width="{shown.width}" '
                  f'height="{shown.height}" class="{form}" decoding="async" alt="{escape(text)}" title="{escape(text)}">')


def _cell(value: object, tag: str) -> str:
    text = value if isinstance(value, Markup) else escape(str(value))
    return f'<{tag} style="text-align: left">{text}</{tag}>'
