"""What the options of several commands ask for: a data set or banks of features, and runs on them."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewshot.cli.options import Values, refuse_given
from fewshot.cli.values import listed, pairs, words
from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict
from fewshot.core.registry import unknown_message
from fewshot.core.settings import anything, setting, settings_of
from fewshot.episodes.protocol import PROTOCOLS, EpisodicProtocol, Protocol, read_protocol
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.run import Run
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank, ImageBank


@dataclass
class Places:
    """Where things lie."""

    data_root: Path | None = setting(None, "folder that holds the data sets (default: data)", anything,
                                     envvar="FEWSHOT_DATA")
    runs: Path = setting(Path("runs"), "folder of stored results", anything)


@dataclass
class Banks:
    """Features instead of images."""

    features: Path | None = setting(None, "feature bank from `fewshot embed`, or .npz or .parquet, not images", anything)
    base_features: Path | None = setting(None, "feature bank of the base classes", anything)


@dataclass
class Data:
    """Images by data set, or banks.

    subject   settings of a `Run`; {} where banks are given
    """

    subject: dict[str, Any]
    root: Path | None
    bank: FeatureBank | None = None
    base_bank: FeatureBank | None = None

    @property
    def names(self) -> tuple[str, str]:
        """(data set, backbone)."""
        if self.bank is not None:
            return self.bank.name, self.bank.provenance.get("backbone", "features")
        return self.subject["dataset"], self.subject["backbone"]


def data_of(context: typer.Context, subject: Values[Subject], banks: Banks, places: Places) -> Data:
    """Loads banks; raises FewshotError for options that would have no effect beside others."""
    from fewshot.data.banks import FeatureBank

    if banks.features:
        refuse_given(context, subject, "beside --features: the features know their data set and backbone")
        base_bank = FeatureBank.load(banks.base_features) if banks.base_features else None
        return Data({}, places.data_root, FeatureBank.load(banks.features), base_bank)
    if banks.base_features:
        raise FewshotError("--base-features without --features: with a data set its own base classes are used")
    return Data(*images_of(subject, places.data_root))


def images_of(subject: Values[Subject], root: Path | None) -> tuple[dict[str, Any], Path | None]:
    """(settings of a `Run`, data root) that the user means: a path is the data at that place, of the kind it shows. Raises
    FewshotError for a backbone or weights that are not there."""
    from fewshot.backbones import check_backbone
    from fewshot.datasets import DATASETS, kind_of

    found: dict[str, Any] = {name: pairs(value) if name.endswith("_options") else value for name, value in subject.items()}
    if "backbone" in found:
        check_backbone(found["backbone"], found.get("weights"))
    dataset = found["dataset"]
    if dataset.partition(":")[0] not in DATASETS.families and dataset not in DATASETS and (
            "/" in dataset or Path(dataset).exists()):
        found["dataset"], root = kind_of(Path(dataset)), Path(dataset)
    if "split" in found and found["split"] is None:
        found["split"] = "all" if found["dataset"] == "folder" and "splits" not in found["data_options"] else "test"
    return found, root


def say_what_is_there(context: typer.Context, banks: Iterable[FeatureBank | ImageBank]) -> None:
    """One line a bank, unless `--quiet`: a wrong folder or split is seen before the work, not in a plausible result."""
    if not context.find_root().params.get("quiet"):
        for bank in banks:
            typer.echo(f"{bank.shown_name}, {bank.split}: {bank.counted}", err=True)


def method_of(spec: Values[MethodSpec]) -> dict[str, Any]:
    """Settings of a `Run`."""
    return {**spec, "parameters": pairs(spec["parameters"])}


def protocol_of(context: typer.Context, given: Values[Protocol]) -> Protocol:
    """The protocol; raises FewshotError for options of another one."""
    cls = PROTOCOLS[given.get("protocol", EpisodicProtocol.name)]
    refuse_given(context, [name for name in given if name != "protocol" and name not in settings_of(cls)],
                 f"beside --protocol {cls.name}, which has no use for it")
    return read_protocol({name: value for name, value in given.items() if name == "protocol" or name in settings_of(cls)})


def lists_of(given: Values[Protocol]) -> dict[str, list[Any]]:
    """Setting -> the values of those that may be several, for `fewshot eval`."""
    cls = PROTOCOLS[given.get("protocol", EpisodicProtocol.name)]
    hints = typing.get_type_hints(cls)
    found = {}
    for name, known in settings_of(cls).items():
        if known.several and given[name] is not None:
            kind = next(kind for kind in (float, int, str) if kind is hints[name] or kind in typing.get_args(hints[name]))
            found[name] = listed(known.option(name), given[name], kind)
    return found


def runs_of(context: typer.Context, subject: dict[str, Any], spec: Values[MethodSpec], given: Values[Protocol],
            run: Values[Run], parameters: dict[str, dict[str, Any]]) -> list[Run]:
    """A run for each method and each combination of the lists, none twice; `parameters` of methods that were learned."""
    lists, method = lists_of(given), method_of(spec)
    found, names = [], words(spec["method"])
    common, own = _parameters_by_method(method["parameters"], names)
    for name in names:
        chosen = FrozenDict({**parameters.get(name, {}), **common, **own[name]})
        made = MethodSpec(name, chosen, method["transforms"])
        for values in itertools.product(*lists.values()):
            asked: Values[Protocol] = Values({**given, **dict(zip(lists, values, strict=True))})
            if asked.get("k_eff") is not None and asked["query_distribution"] != "k_eff":
                asked["k_eff"] = None  # of another one of the distributions asked for
            found.append(Run(spec=made, protocol=protocol_of(context, asked), **subject, **run))
    return list(dict.fromkeys(found))


def _parameters_by_method(given: dict[str, Any], methods: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(hyper-parameters of all methods, method -> those that were given as METHOD.name)."""
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for key, value in given.items():
        method, dot, name = key.rpartition(".")
        if dot and method not in own:
            raise FewshotError(f"--set {key}={value}: " + unknown_message("method asked for", method, methods))
        (own[method] if dot else common)[name] = value
    return common, own


def one_run(context: typer.Context, data: Data, spec: Values[MethodSpec], given: Values[Protocol], run: Values[Run]) -> Run:
    """The run that the options ask for."""
    return Run(protocol=protocol_of(context, given), **data.subject, **method_of(spec), **run)


def fields_of_episodes() -> tuple[str, ...]:
    """All settings that describe episodes."""
    return (*(name for each in PROTOCOLS for name in settings_of(PROTOCOLS[each])), *(
        f.name for f in dataclasses.fields(Run) if "setting" in f.metadata))
