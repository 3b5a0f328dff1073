"""The tables behind `fewshot list` and `fewshot data`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table


def listing(kinds: tuple[str, ...]) -> Iterator[Table]:
    """One table for each of "methods", "backbones" and "datasets"."""
    makers = {"methods": _methods, "backbones": _backbones, "datasets": data_listing}
    for kind in kinds:
        yield makers[kind]()


def _methods() -> Table:
    from fewshot.methods import METHODS, method_parameters

    table = Table("method", "setting", "assumes", "hyper-parameters", title="Methods", title_justify="left")
    for name in METHODS:
        cls = METHODS[name]
        parameters = ", ".join(f"{key}={value}" for key, value in method_parameters(name).items())
        table.add_row(name, cls.setting, ", ".join(cls.assumes), parameters)
    return table


def _backbones() -> Table:
    from fewshot.backbones import backbone_table

    table = Table("backbone", "features", "input", "pre-trained on", title="Backbones", title_justify="left")
    for row in backbone_table():
        table.add_row(*(str(row[key]) for key in ("name", "feature_dim", "input_size", "pretrained_on")))
    return table


def data_listing(root=None) -> Table:
    """Every data set: state, place, sizes, licence, how to get it."""
    from fewshot.datasets import dataset_table

    table = Table("data set", "state", "where", "images", "classes", "licence", "how to get it", title="Data sets",
                  title_justify="left")
    for row in dataset_table(root):
        table.add_row(*(str(row[key]) for key in ("name", "state", "where", "images", "classes", "licence", "how")))
    return table
