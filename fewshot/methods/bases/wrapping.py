"""Methods that have another method inside and ask of an episode what that one asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from fewshot.data.banks import FeatureBank
from fewshot.methods.contract import Method, create_method


class WrappingMethod(Method):
    """A mixin for frozen dataclasses with the fields `method` (a registered name), `parameters`, and the fitted `inner`."""

    method: str
    parameters: Mapping
    inner: Method | None

    @cached_property
    def made(self) -> Method:
        """The method inside, fitted where this one is."""
        return create_method(self.method, **self.parameters) if self.inner is None else self.inner

    @property
    def needs_base(self) -> bool:
        return self.made.needs_base

    @property
    def needs_text(self) -> bool:  # type: ignore[override]
        return self.made.needs_text

    @property
    def text_of_features(self) -> bool:  # type: ignore[override]
        return self.made.text_of_features

    @property
    def reads_prompts(self) -> bool:  # type: ignore[override]
        return self.made.reads_prompts

    @property
    def assumes(self) -> tuple[str, ...]:
        return self.made.assumes

    def fit(self, base_bank: FeatureBank) -> Method:
        wrapping: Any = self  # a dataclass, as the mixin itself is not
        return dataclasses.replace(wrapping, inner=self.made.fit(base_bank))
