"""`Run`: the request for one evaluation. Command line, notebooks and experiments all build this.

Torch is not imported with this module: the command line reads the fields for its help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import plain
from fewshot.core.registry import unknown_message
from fewshot.core.settings import default_of, setting, settings_of, settle, whole
from fewshot.episodes.protocol import EpisodicProtocol, Protocol, protocol_settings, read_protocol
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.record import IDENTITIES, LATER, Record, flat_key, present_parameters
from fewshot.features.subject import Subject

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank, ImageBank
    from fewshot.episodes.sampler import Sampler
    from fewshot.episodes.saved import EpisodeList

MOST_EPISODES = 100_000_000  # far beyond what an interval needs; what each measures is kept in memory
_SUBJECT, _METHOD = tuple(settings_of(Subject)), tuple(settings_of(MethodSpec))


@dataclass(frozen=True, init=False)
class Run:
    """One evaluation: what is looked at, by which method, on which episodes.

    subject     data set, split, backbone, weights, crops (`Subject`)
    spec        method, parameters, transforms (`MethodSpec`)
    protocol    ways, shots, queries, query_distribution, alpha, k_eff, open_classes, open_queries,
                small_classes (`EpisodicProtocol`)
    episodes    their number, the protocol's usual one unless given;  seed  which ones

    Written flat: `Run(dataset="omniglot", method="pt_map", shots=5)`, and read flat: `run.shots`. Also
    `run.changed(shots=1)`, or `dataclasses.replace`; another method begins with its own defaults. Equal requests are equal,
    have equal hashes and equal keys. Nothing is read from the disk: what depends on files is found by `evaluate`.

    Raises FewshotError for unknown names and wrong values; what depends on the data is checked by `evaluate`.
    """

    subject: Subject
    spec: MethodSpec
    protocol: Protocol
    episodes: int = setting(None, "number of episodes (default: 10,000; of all_classes 10 draws)", whole(2, MOST_EPISODES))
    seed: int = setting(0, "seed of the episodes", whole())

    def __init__(self, subject: Subject | None = None, spec: MethodSpec | None = None, protocol: Protocol | None = None, *,
                 episodes: int | None = None, seed: int = 0, **settings: Any):
        from fewshot.datasets import DATASETS

        known = {*_SUBJECT, *_METHOD, *protocol_settings()}
        for name in settings:
            if name not in known:
                raise FewshotError(unknown_message("run setting", name, sorted({*known, "episodes", "seed", "protocol"})))
        subject = _changed(Subject() if subject is None else subject, settings, _SUBJECT)
        DATASETS[subject.dataset]  # raises for an unknown one
        protocol = _changed_protocol(EpisodicProtocol() if protocol is None else protocol, settings)
        episodes = protocol.usual_episodes if episodes is None else episodes
        for name, value in {"subject": subject, "spec": _changed_method(spec, settings), "episodes": episodes, "seed": seed,
                            "protocol": on_dataset(protocol, subject.dataset)}.items():
            object.__setattr__(self, name, value)
        settle(self)

    if not TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any:
            """A setting of one of the parts."""
            if not name.startswith("_"):  # those are asked for while it is being unpickled
                for part in (self.subject, self.spec, self.protocol):
                    if name in settings_of(part):
                        return getattr(part, name)
            raise AttributeError(f"a Run has no {name!r}")
    else:
        def __getattr__(self, name: str) -> Any: ...

    def changed(self, **settings: Any) -> Run:
        """With other values for some settings, of any part: `dataclasses.replace`, of which type checkers know the fields
        alone."""
        return dataclasses.replace(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by flat name, as a stored result names them."""
        values = {**_values(self.subject), **_values(self.spec), **_values(self.protocol),
                  "episodes": self.episodes, "seed": self.seed}
        if self.protocol.name != EpisodicProtocol.name:
            values["protocol"] = self.protocol.name
        return plain(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `to_dict`; also of a `Record`'s values, whose identities of data are left out."""
        values = {name: value for name, value in values.items() if name not in IDENTITIES}
        if "parameters" in values:
            values["parameters"] = present_parameters(values.get("method", MethodSpec().method), values["parameters"])
        asked = {name: values.pop(name) for name in list(values) if name == "protocol" or name in protocol_settings()}
        return cls(protocol=read_protocol(asked), **values)

    def record(self, **identities: Any) -> Record:
        """What a result says of it: its settings, with `identities` (of data and weights) and whatever else was found in
        place of them. What came later is left out where it is not used."""
        values = {name: value for name, value in self.to_dict().items() if name not in identities}
        return Record({**values, **{name: value for name, value in identities.items() if value or name not in LATER}})

    @classmethod
    def from_record(cls, record: Record) -> Run:
        """The request that repeats `record`. The data set of features that somebody handed over is none that can be loaded:
        it is left out, and the run needs them again. Raises FewshotError for a method that is no longer known."""
        from fewshot.datasets import DATASETS

        known = record.dataset in DATASETS
        return cls.from_dict({name: value for name, value in record.values.items() if known or name != "dataset"})

    @property
    def key(self) -> str:
        """16 hexadecimal digits: equal for equal requests. A stored result is named by the key of its `Record`."""
        return flat_key(self.to_dict())

    def sampler(self, bank: ImageBank | FeatureBank) -> Sampler:
        """What draws the episodes from `bank`."""
        return on_dataset(self.protocol, bank.name).sampler(bank, self.seed)

    def drawn(self, bank: ImageBank | FeatureBank) -> EpisodeList:
        """The episodes that evaluating this on `bank` draws."""
        from fewshot.episodes.saved import EpisodeList

        protocol = on_dataset(self.protocol, bank.name)
        about = {**protocol.settings(), "episodes": self.episodes, "seed": self.seed}
        if protocol.name != EpisodicProtocol.name:
            about["protocol"] = protocol.name
        return EpisodeList.draw(self.sampler(bank), self.episodes, bank, about)


def of_list(run: Run, episodes: EpisodeList) -> Run:
    """`run` with the protocol, number and seed of a list of episodes."""
    outside = {name: episodes.protocol[name] for name in ("episodes", "seed")}
    return run.changed(protocol=read_protocol(episodes.described), **outside)


def on_dataset(protocol: Protocol, name: str) -> Protocol:
    """`protocol` with what it leaves to the data set `name`, which need not be a registered one."""
    from fewshot.datasets import DATASETS, Dataset

    return protocol.filled(queries=DATASETS[name].queries if name in DATASETS else Dataset.queries)


def _values(spec: Subject | MethodSpec | Protocol) -> dict[str, Any]:
    """Name -> value of the settings; those that came later only where they are used."""
    return {name: getattr(spec, name) for name, known in settings_of(spec).items()
            if not known.later or getattr(spec, name) != default_of(spec, name)}


def _changed(spec: Any, settings: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    given = {name: settings[name] for name in names if name in settings}
    return dataclasses.replace(spec, **given) if given else spec


def _changed_method(spec: MethodSpec | None, settings: Mapping[str, Any]) -> MethodSpec:
    given = {name: settings[name] for name in _METHOD if name in settings}
    if spec is None:
        return MethodSpec(**given)
    if given.get("method", spec.method) != spec.method:  # the parameters of another method say nothing here
        given.setdefault("parameters", {})
    if "parameters" in given:
        given["chosen"] = None
    return dataclasses.replace(spec, **given) if given else spec


def _changed_protocol(protocol: Protocol, settings: Mapping[str, Any]) -> Protocol:
    given = {name: settings[name] for name in protocol_settings() if name in settings}
    if not given:
        return protocol
    for name in given:
        if name not in settings_of(protocol):
            known = list(settings_of(protocol))
            raise FewshotError(unknown_message(f"setting of the protocol {protocol.name}", name, known))
    return type(protocol)(**{**protocol.settings(), **dict.fromkeys(protocol.open_settings), **given})
