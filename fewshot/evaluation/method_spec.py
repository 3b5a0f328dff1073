"""`MethodSpec`: which method with which hyper-parameters, after which transforms.

Torch is not imported with this module: the command line reads the fields for its help.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewshot.core.frozen import FrozenDict
from fewshot.core.settings import options, setting, settle, text

if TYPE_CHECKING:
    from fewshot.features.transforms import TransformChain
    from fewshot.methods.contract import Method


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, checked when it is made: it holds the method and the transforms, each made once.

    method       registered name
    parameters   every hyper-parameter; those left out get their defaults
    transforms   feature transforms before the method, e.g. "center_base,l2"; kept with all arguments written out
    may_be_trained   whether a weights file may bring other hyper-parameters: those that the method was trained with
    chosen       names of the parameters that were given, of such a method: the others are as trained (`with_trained`)

    Raises FewshotError for unknown names and for values that the method or a transform refuses.
    """

    method: str = setting("protonet", "method, see `fewshot list methods`", text(), several=True)
    parameters: FrozenDict = setting({}, "a hyper-parameter of the method; repeat for more", options, flag="--set",
                                     metavar="NAME=VALUE")
    transforms: str = setting("", "feature transforms, e.g. center_base,l2", text(), shown=True)
    chosen: frozenset[str] | None = dataclasses.field(default=None, repr=False)
    may_be_trained: bool = dataclasses.field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from fewshot.features.transforms import parse_transforms
        from fewshot.methods import METHODS
        from fewshot.methods.contract import complete_parameters, create_method

        settle(self)
        chosen = frozenset(self.parameters) if self.chosen is None else self.chosen
        trained = hasattr(METHODS[self.method], "with_backbone")
        chain, parameters = parse_transforms(self.transforms), complete_parameters(self.method, self.parameters)
        made = create_method(self.method, **parameters)
        for name, value in {"may_be_trained": trained, "chosen": chosen if trained else frozenset(),
                            "transforms": str(chain), "_chain": chain, "_made": made,
                            "parameters": options("parameters", {**parameters, **made.recorded})}.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple:
        return MethodSpec, (self.method, self.parameters, self.transforms, self.chosen)  # made anew where it arrives

    @property
    def chain(self) -> TransformChain:
        """The transforms, not yet fitted to base classes."""
        return self._chain  # type: ignore[attr-defined]

    def make(self) -> Method:
        """The method, not yet fitted to base classes: one that has no weights is always the same object."""
        made = self._made  # type: ignore[attr-defined]
        return copy.deepcopy(made) if hasattr(made, "state_dict") else made

    @property
    def needs_base(self) -> bool:
        """Whether the method or a transform needs statistics of the base classes."""
        return self._made.needs_base or self._chain.needs_base  # type: ignore[attr-defined]

    def with_trained(self, parameters: Mapping[str, Any]) -> MethodSpec:
        """With the hyper-parameters that a method was trained with, where none were given."""
        left = {name: value for name, value in parameters.items() if name not in (self.chosen or ())}
        return dataclasses.replace(self, parameters=FrozenDict({**self.parameters, **left})) if left else self
