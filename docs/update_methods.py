"""Write docs/methods.md: every method with its paper, setting, assumptions, inputs, agreement with official code and speed.

    python docs/update_methods.py

What a method is comes from the registry, agreement from docs/agreement.md and speed from docs/benchmarks.md.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fewshot.methods import METHODS, create_method

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "methods.md"
GROUPS = {("features", "inductive"): "Inductive, on features", ("features", "transductive"): "Transductive, on features",
          ("images", "inductive"): "Inductive, on images", ("images", "transductive"): "Transductive, on images"}

HEAD = """# Methods

Written by `python docs/update_methods.py`; {count} methods. `fewshot list methods` prints their hyper-parameters, a name
leads to what it computes and where it deviates from its paper.

- *Assumes*: what must be true for the method to make sense, with its default hyper-parameters; and what it needs besides an
  episode.
- *Agreement*: the largest difference to the outputs of the official program in float64, of all rows in
  [the table of agreement](agreement.md), which has the settings and the repositories. "Loop": no official output could be
  had, so the method is compared with a plain loop or with a library.
- *Speed*: episodes a second, 5-way 1-shot, 75 queries, 640 features, one thread, and how many times the time of the
  [floor](benchmarks.md#every-method-on-cached-features-over-its-floor), exponentials included, that is; or the milliseconds
  of [one training step](benchmarks.md#one-training-step). Seconds an episode of methods that adapt the backbone are beside
  [their accuracy](../experiments/results/fine_tuning_beside_frozen.md).
"""


@dataclass(frozen=True)
class Entry:
    """One method as the registry knows it; cells are Markdown."""

    name: str
    group: str
    link: str
    says: str
    paper: str
    assumes: str

    @property
    def row(self) -> str:
        """Its row of the page without what was measured."""
        return f"| {self.link} | {self.says}<br>{self.paper} | {self.assumes} |"


def entries() -> list[Entry]:
    """All methods of the package, by name; what others have registered beside them is left out."""
    return [_entry(name, METHODS[name]) for name in METHODS if METHODS[name].__module__.startswith("fewshot.methods.")]


def _entry(name: str, cls: type) -> Entry:
    method = create_method(name)
    file = cls.__module__.rpartition(".")[2]
    # A file is named after its method and begins with one sentence; a second method in it has only its own docstring.
    docstring = sys.modules[cls.__module__].__doc__ if file == name else re.split(r"\.\s", cls.__doc__)[0] + "."
    needs = {"features of base classes": method.needs_base, "a backbone": method.needs_backbone,
             "texts of the classes": method.needs_text, "validation images": method.needs_validation}
    assumes = [*method.assumes, *(f"needs {what}" for what, true in needs.items() if true)]
    return Entry(name, GROUPS[method.inputs, method.setting], f"[`{name}`](../fewshot/methods/{file}.py)",
                 _cell(docstring.strip().split("\n\n")[0]),
                 re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", _cell(cls.paper)),
                 _cell("; ".join(assumes)))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rows_below(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below `heading` (or of the text's first one), its own headings first."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i, line in enumerate(lines[start:], start) if not line.startswith("|")), len(lines))
    table = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines[start:end]]
    return [table[0], *table[2:]]


def agreement() -> dict[str, str]:
    """Method -> largest difference to an official program, or that the labels are the same."""
    names, *rows = rows_below((DOCS / "agreement.md").read_text("utf-8"), "# Agreement")
    float64, labels = names.index("float64"), names.index("labels")
    found: dict[str, str] = {}
    for row in rows:
        row += [""] * (len(names) - len(row))
        if row[1].startswith("after "):
            continue  # a transform was compared, the method comes after it
        here = row[float64] or f"labels: {row[labels]} differ"
        if row[0] not in found or _size(here) > _size(found[row[0]]):
            found[row[0]] = here
    return found


def _size(difference: str) -> float:
    number = re.fullmatch(r"(?:< )?(\d+e-\d+)", difference)
    return float(number[1]) if number else 0.0


def speed() -> dict[str, str]:
    """Method -> episodes a second and the time over the floor, else milliseconds of a training step."""
    text = (DOCS / "benchmarks.md").read_text("utf-8")
    found = {row[0]: f"{_number(row[1])} ms a step" for row in rows_below(text, "## One training step")[1:]}
    return found | {row[0]: f"{_number(row[1])}/s, {row[3]} × floor"
                    for row in rows_below(text, "### 640 features")[1:] if row[1] != "-"}


def _number(cell: str) -> str:
    """The median of "median (lowest to highest)"."""
    return cell.split(" ")[0]


def page() -> str:
    methods, differences, rates = entries(), agreement(), speed()
    parts = [HEAD.format(count=len(methods))]
    for group in GROUPS.values():
        rows = [f"{entry.row} {differences.get(entry.name, 'loop')} | {rates.get(entry.name, '')} |"
                for entry in methods if entry.group == group]
        heading = "| method | what it is; paper; official code | assumes | agreement | speed |"
        parts.append("\n".join([f"## {group}", "", heading, "|---|---|---|---|---|", *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE}")
