"""The tables behind `fewshot list` and `fewshot data`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table


def listing(kinds: tuple[str, ...]) -> Iterator[Table]:
    """One table for each of "methods", "backbones", "datasets" and "protocols"."""
    makers = {"methods": _methods, "backbones": _backbones, "datasets": data_listing, "protocols": _protocols}
    for kind in kinds:
        yield makers[kind]()


def _table(names: str, *headings: str, title: str, show_lines: bool = False) -> Table:
    """A table whose first column has names, which are never cut: one types them. Other texts are broken into lines."""
    table = Table(title=title, title_justify="left", show_lines=show_lines)
    table.add_column(names, no_wrap=True, overflow="ignore")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _methods() -> Table:
    from fewshot.methods import METHODS, create_method, method_parameters

    table = _table("method", "setting", "assumes", "hyper-parameters", title="Methods")
    for name in METHODS:
        method = create_method(name)
        parameters = ", ".join(f"{key}={value}" for key, value in method_parameters(name).items())
        assumes = [*method.assumes, *(["needs texts"] if method.needs_text else [])]
        table.add_row(name, method.setting, ", ".join(assumes), escape(parameters))
    return table


def _backbones() -> Table:
    from fewshot.backbones import backbone_table

    table = _table("backbone", "features", "input", "pre-trained on", title="Backbones")
    for row in backbone_table():
        table.add_row(*(str(row[key]) for key in ("name", "feature_dim", "input_size", "pretrained_on")))
    return table


def _protocols() -> Table:
    from fewshot.core.settings import default_of, settings_of
    from fewshot.episodes.protocol import PROTOCOLS

    table = _table("protocol", "settings", title="Protocols")
    for name in PROTOCOLS:
        cls = PROTOCOLS[name]
        table.add_row(name, escape(", ".join(f"{key}={default_of(cls, key)}" for key in settings_of(cls))))
    return table


def data_listing(root: str | Path | None = None) -> Table:
    """Every data set: state, place, sizes, licence, how to get it."""
    from fewshot.datasets import dataset_table

    table = _table("data set", "train / val / test", "place, licence, how to get it", title="Data sets", show_lines=True)
    for row in dataset_table(root):
        sizes = [f"{row[key]} {key}" for key in ("classes", "images") if row[key]]
        facts = [escape(f"{key}: {row[key]}") for key in ("where", "licence", "how") if row[key]]
        table.add_row(f"{row['name']}\n[dim]{row['state']}[/dim]", "\n".join(sizes), "\n".join(facts))
    return table
