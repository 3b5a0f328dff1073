"""`Record`: what was evaluated, in plain values. It is read back whatever became of the method since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fewshot.core.frozen import FrozenDict, frozen_dict, plain
from fewshot.core.settings import default_of, settings_of
from fewshot.episodes.protocol import EpisodicProtocol, Protocol, protocol_default, protocol_settings, read_protocol
from fewshot.features.subject import Subject

# Content hashes of the evaluated images or features, of those of the base classes, and of a list of episodes.
IDENTITIES = ("data", "base", "episode_list")
LATER = ("base", "episode_list", "crops")  # left out where they are not used, as in results from before there were any


class Record:
    """The settings of an evaluation, as they are stored: names and values of a `Run`, weights by the identity of their
    tensors, and

    data           content hash of the images, or of a feature bank supplied directly (then dataset and backbone are labels)
    base           content hash of the base classes' images or features, where the method or a transform used them
    episode_list   fingerprint of a saved list of episodes, where these were taken and not drawn from `seed`

    Read flat like a run: `record.method`, `record.shots`; `record.protocol` is the protocol. Records are values: equal
    where all settings are.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values: FrozenDict = frozen_dict(values)

    if not TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name == "values":  # while it is being unpickled
                raise AttributeError(name)
            if name in self.values:
                return self.values[name]
            if name in _DEFAULTS:  # a setting that came later
                return _DEFAULTS[name]
            raise AttributeError(f"a record has no {name!r}")
    else:
        def __getattr__(self, name: str) -> Any: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"Record({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol; raises FewshotError where its settings are no longer known."""
        names = ("protocol", *protocol_settings())
        return read_protocol({name: self.values[name] for name in names if name in self.values})

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name the folder of the result."""
        return flat_key(self.values)

    def changed(self, **values: Any) -> Record:
        """With other values for some settings."""
        return Record({**self.values, **values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as run.json has them."""
        return plain(self.values)

    @cached_property
    def comparable(self) -> FrozenDict:
        """Equal for records of the same evaluation: a hyper-parameter that the method gained since has its default, one
        that was renamed (`Method.renamed`) its present name, and so have settings that came later."""
        from fewshot.methods import METHODS
        from fewshot.methods.contract import complete_parameters

        parameters = present_parameters(self.method, self.values.get("parameters", {}))
        if self.method in METHODS:
            parameters = complete_parameters(self.method, parameters)
        return frozen_dict({**_DEFAULTS, **self.values, "parameters": parameters})


def present_parameters(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Stored hyper-parameters under the names that the method gives them today."""
    from fewshot.methods import METHODS

    return METHODS[method].present_names(parameters) if method in METHODS else dict(parameters)


def flat_key(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of plain values."""
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()[:16]


_DEFAULTS = {**{name: default_of(Subject, name) for name in settings_of(Subject)}, **dict.fromkeys(IDENTITIES),
             **{name: protocol_default(name) for name in protocol_settings()},
             "protocol": EpisodicProtocol.name, "transforms": ""}
