"""The contact sheet of `predict_folder`: one self-contained HTML page, complete without JavaScript."""

from __future__ import annotations

import base64
import io
import string
from html import escape
from importlib import resources

import torch
from PIL import Image
from torch import Tensor

from fewshot.core.checked import check_number
from fewshot.labelling.answers import Answers

_SIDE, _EXAMPLE_SIDE, _NEAR_SIDE = 160, 80, 40  # pixels of a thumbnail
_EXAMPLES = 12  # shown a class
_SHOWN = 2000  # a page of more thumbnails no longer opens quickly


def sheet(found: Answers, low: float) -> str:
    """The page: images by predicted class with their probability, beside the support; answers below `low` are marked.

    Of more than 2000 images the least confident are shown. Raises FewshotError for a `low` outside 0 .. 1.
    """
    check_number("low", low, 0, 1)
    labels = found.probabilities.argmax(1).tolist()
    believed = found.confidence if found.calibrated is None else found.calibrated.amax(1)
    marked = (believed < low).tolist()
    shown = sorted(believed.argsort(stable=True)[:_SHOWN].tolist())
    sections = [_section(found, label, [row for row in shown if labels[row] == label], labels.count(label), marked)
                for label in range(len(found.class_names))]
    facts = [f"{len(found)} images, {len(found.class_names)} classes; {found.description}, {found.setting}.",
             f"{sum(marked)} of {len(found)} answers are marked as low: their probability is below {100 * low:g}\u00a0%."]
    if found.decided is not None and found.decided.unknown is not None:
        facts.append(f"{int(found.decided.unknown.sum())} of {len(found)} are marked as unknown: they seem to be of no "
                     "class of the support.")
    facts.append("Small pictures on a card: the examples nearest to the image.")
    if len(shown) < len(found):
        facts.append(f"The {len(shown)} least confident images are shown; predictions.csv has all of them.")
    if found.unreadable:
        facts.append(f"{len(found.unreadable)} more could not be read; they are listed at the end.")
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*facts, *found.notes))
    body = [f'<ul class="notes">{notes}</ul>', _CONTROLS, *sections, _unreadable(found)]
    page = resources.files("fewshot.labelling").joinpath("templates/contact_sheet.html")
    template = string.Template(page.read_text("utf-8"))
    return template.substitute(title="Predicted classes", body="\n".join(filter(None, body)))


_CONTROLS = """<form class="controls" hidden>
<label>Order <select name="order"><option value="file">by file</option><option value="up">least confident first</option>
<option value="down">most confident first</option></select></label>
<label><input type="checkbox" name="grouped" checked> grouped by class</label>
<label><input type="checkbox" name="low"> only low ones</label>
</form>
<ul class="cards" id="together" hidden></ul>"""


def _section(found: Answers, label: int, rows: list[int], total: int, marked: list[bool]) -> str:
    name = escape(found.class_names[label])
    examples = (found.support.labels == label).nonzero()[:, 0].tolist()
    files = found.support.files or ()
    pictures = "".join(_picture(found.support.images[row], _EXAMPLE_SIDE, f"example of {found.class_names[label]}: "
                                f"{files[row]}") for row in examples[:_EXAMPLES])
    more = f"<span>and {len(examples) - _EXAMPLES} more</span>" if len(examples) > _EXAMPLES else ""
    counted = "1 image" if total == 1 else f"{total} images"
    cards = "\n".join(_card(found, row, marked[row]) for row in rows)
    return (f'<section><h2>{name} <span class="soft">{counted}</span></h2>\n'
            f'<div class="examples"><span>Support ({len(examples)})</span>{pictures}{more}</div>\n'
            f'<ul class="cards">{cards}</ul></section>')


def _card(found: Answers, row: int, low: bool) -> str:
    file, values = found.files[row], (found.probabilities if found.calibrated is None else found.calibrated)[row]
    (first, second), (label, other) = (part.tolist() for part in values.topk(2))
    badges = "".join(f'<span class="badge">{word}</span>' for word, holds in (
        ("low", low), ("unknown", found.is_unknown(row)), ("in the support", file in found.repeated)) if holds)
    files = found.support.files or ()
    near = "".join(_picture(found.support.images[example], _NEAR_SIDE, f"near: {files[example]}")
                   for example in found.examples_near(row))
    return (f'<li class="card{" low" if low else ""}" data-row="{row}" data-p="{first:.6f}">'
            f"{_picture(found.images[row], _SIDE, f'{file}: {found.class_names[label]}')}"
            f'<span class="bar"><span style="width:{100 * first:.1f}%"></span></span>'
            f'<span class="class">{escape(found.class_names[label])}</span>'
            f'<span class="first"><strong>{_percent(first)}</strong>{badges}</span>'
            f'<span class="soft">then {escape(found.class_names[other])} {_percent(second)}</span>{_set(found, row)}'
            f'<span class="near">{near}</span>'
            f'<span class="soft file">{escape(file)}</span></li>')


def _set(found: Answers, row: int) -> str:
    members = found.set_of(row)
    if members is None:
        return ""
    names = ", ".join(members) if members else "no class is probable enough"
    return f'<span class="soft">Set ({len(members)}): {escape(names)}</span>'


def _unreadable(found: Answers) -> str:
    if not found.unreadable:
        return ""
    items = "".join(f"<li>{escape(file)}: {escape(why)}</li>" for file, why in found.unreadable.items())
    return f'<h2>Not readable <span class="soft">{len(found.unreadable)}</span></h2>\n<ul class="notes">{items}</ul>'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _picture(image: Tensor, side: int, text: str) -> str:
    """uint8 [C, H, W] as an `<img>` at most `side` pixels wide; small drawings as PNG, which keeps their edges."""
    pixels = torch.movedim(image, 0, 2).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((side, side), Image.Resampling.BILINEAR)
    form = "png" if max(image.shape[1:]) <= 64 else "jpeg"
    data = io.BytesIO()
    picture.save(data, form, quality=85)
    return (f'<img src="data:image/{form};base64,{base64.b64encode(data.getvalue()).decode()}" width="{picture.width}" '
            f'height="{picture.height}" class="{form}" decoding="async" alt="{escape(text)}" title="{escape(text)}">')
