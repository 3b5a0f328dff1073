"""The contact sheet of `predict_folder`: one self-contained HTML page, complete without JavaScript."""

from __future__ import annotations

import string
from collections.abc import Iterable
from html import escape
from importlib import resources

from fewshot.core.checked import check_number
from fewshot.core.html import picture
from fewshot.labelling.answers import Answers

SIDE, _EXAMPLE_SIDE, _NEAR_SIDE = 160, 80, 40  # pixels of a thumbnail
_EXAMPLES = 12  # shown a class
SHOWN = 2000  # a page of more thumbnails no longer opens quickly


def sheet(found: Answers, low: float) -> str:
    """The page: images by predicted class with their probability, beside the support; answers below `low` are marked.

    Of more than 2000 images the least confident are shown. Raises FewshotError for a `low` outside 0 .. 1.
    """
    check_number("low", low, 0, 1)
    labels = found.probabilities.argmax(1).tolist()
    marked = (found.confidence < low).tolist()
    shown = sorted(found.confidence.argsort(stable=True)[:SHOWN].tolist())
    sections = [_section(found, label, [row for row in shown if labels[row] == label], labels.count(label), marked)
                for label in range(len(found.class_names))]
    facts = [f"{len(found)} images, {len(found.class_names)} classes; {found.description}, {found.setting}.",
             f"{sum(marked)} of {len(found)} answers are marked as low: their probability is below {100 * low:g}\u00a0%."]
    facts += told_of_cards(found)
    if len(shown) < len(found):
        facts.append(f"The {len(shown)} least confident images are shown; predictions.csv has all of them.")
    if found.unreadable:
        facts.append(f"{len(found.unreadable)} more could not be read; they are listed at the end.")
    return page("Predicted classes", "contact_sheet.js", items((*facts, *found.notes)), _CONTROLS, *sections,
                unreadable(found))


def told_of_cards(found: Answers) -> list[str]:
    """What the cards show beside class and probability."""
    facts = ["The small pictures on a card are the examples nearest to the image."] if found.support is not None else []
    if found.decided is not None and found.decided.unknown is not None:
        facts.append(f"{int(found.decided.unknown.sum())} of {len(found)} are marked as unknown: they seem to be of no "
                     "class of the support.")
    return facts


def page(title: str, script: str, *body: str) -> str:
    """The HTML of a page of images, with a script out of the templates."""
    home = resources.files("fewshot.labelling").joinpath("templates")
    template = string.Template(home.joinpath("page.html").read_text("utf-8"))
    return template.substitute(title=title, body="\n".join(filter(None, body)),
                               script=home.joinpath(script).read_text("utf-8"))


def items(texts: Iterable[str]) -> str:
    """Texts as a list."""
    return f"""<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>"""


_CONTROLS = """<form class="controls" hidden>
<label>Order <select name="order"><option value="file">by file</option><option value="up">least confident first</option>
<option value="down">most confident first</option></select></label>
<label><input type="checkbox" name="grouped" checked> grouped by class</label>
<label><input type="checkbox" name="low"> only low ones</label>
</form>
<ul class="cards" id="together" hidden></ul>"""


def _section(found: Answers, label: int, rows: list[int], total: int, marked: list[bool]) -> str:
    name = escape(found.class_names[label])
    assert found.support is not None, "predict_folder keeps it"
    support = found.support
    examples = (support.labels == label).nonzero()[:, 0].tolist()
    files = support.files or ()
    pictures = "".join(picture(support.images[row], _EXAMPLE_SIDE, f"example of {found.class_names[label]}: "
                               f"{files[row]}") for row in examples[:_EXAMPLES])
    more = f"<span>and {len(examples) - _EXAMPLES} more</span>" if len(examples) > _EXAMPLES else ""
    counted = "1 image" if total == 1 else f"{total} images"
    cards = "\n".join(card(found, row, marked[row]) for row in rows)
    return (f'<section><h2>{name} <span class="soft">{counted}</span></h2>\n'
            f'<div class="examples"><span>Support ({len(examples)})</span>{pictures}{more}</div>\n'
            f'<ul class="cards">{cards}</ul></section>')


def card(found: Answers, row: int, low: bool) -> str:
    """One image with its answer."""
    file, values = found.files[row], found.believed[row]
    (first, second), (label, other) = (part.tolist() for part in values.topk(2))
    badges = "".join(f'<span class="badge">{word}</span>' for word, holds in (
        ("low", low), ("unknown", found.is_unknown(row)), ("in the support", file in found.repeated)) if holds)
    return (f'<li class="card{" low" if low else ""}" data-row="{row}" data-p="{first:.6f}">'
            f"{picture(found.images[row], SIDE, f'{file}: {found.class_names[label]}')}"
            f'<span class="bar"><span style="width:{100 * first:.1f}%"></span></span>'
            f'<span class="class">{escape(found.class_names[label])}</span>'
            f'<span class="first"><strong>{percent(first)}</strong>{badges}</span>'
            f'<span class="soft">then {escape(found.class_names[other])} {percent(second)}</span>'
            f'{_set(found, row)}{_near(found, row)}<span class="soft file">{escape(file)}</span></li>')


def _set(found: Answers, row: int) -> str:
    members = found.set_of(row)
    if members is None:
        return ""
    names = ", ".join(members) if members else "no class is probable enough"
    return f'<span class="soft">Set ({len(members)}): {escape(names)}</span>'


def _near(found: Answers, row: int) -> str:
    """The nearest examples: small pictures, or their names where the pictures are not kept."""
    if not found.nearest:
        return ""
    if found.support is None:
        return f'<span class="soft">Near: {escape(", ".join(found.nearest[row]))}</span>'
    files = found.support.files or ()
    return '<span class="near">' + "".join(picture(found.support.images[files.index(file)], _NEAR_SIDE, f"near: {file}")
                                           for file in found.nearest[row]) + "</span>"


def unreadable(found: Answers) -> str:
    """What could not be read, and why."""
    if not found.unreadable:
        return ""
    listed = items(f"{file}: {why}" for file, why in found.unreadable.items())
    return f'<h2>Not readable <span class="soft">{len(found.unreadable)}</span></h2>\n{listed}'


def percent(value: float) -> str:
    """A probability for people."""
    return f"{100 * value:.1f}\u00a0%"
