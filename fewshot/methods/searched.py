"""Another method whose hyper-parameters are chosen for each episode on its validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import FrozenDict, frozen_dict
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid_search import search_grid
from fewshot.methods.bases.wrapping import WrappingMethod
from fewshot.methods.contract import METHODS, Method, create_method, fitted


@METHODS.register("searched")
@dataclass(frozen=True, eq=False)
class Searched(WrappingMethod):
    """For each episode the setting of a grid with which `method` answers most of its validation images right, of several the
    first one; with that it answers the queries. Labels of queries are not looked at: the search sees support and validation
    images alone (protocols all_classes and base_to_new have some, `EpisodicProtocol` has none).

    With few validation images the choice is partly luck: compare with the method at fixed values, on the same draws.

    method      name of a registered method;  parameters: its hyper-parameters that are not searched
    grid        hyper-parameter -> values, the first in the outermost loop; without any the grid that its paper searches
                (`Method.searched_grid`)
    """

    paper = "the search of Tip-Adapter, on images that are not reported: Zhang et al. 2022, arXiv:2207.09519"
    needs_validation = True

    method: str = "tip_adapter"
    parameters: Mapping = FrozenDict()
    grid: Mapping = FrozenDict()
    inner: Method | None = fitted()

    def __post_init__(self) -> None:
        for name in ("parameters", "grid"):
            object.__setattr__(self, name, frozen_dict(getattr(self, name)))
        if self.method == "searched":
            raise FewshotError("method='searched' of searched; name the method whose hyper-parameters are searched")
        if not self.values:
            raise FewshotError(f"grid={{}}, and {self.method} has no published grid; give values for some of its "
                               "hyper-parameters, as grid={'alpha': [0.1, 1, 10]}")
        for name, values in self.values.items():
            if not isinstance(values, tuple) or not values:
                raise FewshotError(f"grid has {name}={values!r}; give a list of values")
            for value in values:
                create_method(self.method, **{**self.parameters, name: value})

    @cached_property
    def values(self) -> FrozenDict:
        """Hyper-parameter -> values that are tried."""
        return self.grid or frozen_dict(self.made.searched_grid)  # type: ignore[return-value]

    @property
    def setting(self) -> str:  # type: ignore[override]
        return self.made.setting

    def __call__(self, episodes: Episodes) -> Tensor:
        return torch.cat([self.chosen(episodes[e])(episodes[e].replace(validation=None, validation_labels=None))
                          for e in range(len(episodes))])

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        return torch.cat([self.chosen(episodes[e]).transfer(episodes[e], query[e : e + 1], text[e : e + 1])
                          for e in range(len(episodes))])

    def chosen(self, episode: Episodes) -> Method:
        """The method at the values chosen on the validation images of a single episode, E=1."""
        if episode.validation is None or episode.validation_labels is None:
            raise FewshotError("searched chooses hyper-parameters on validation images, and these episodes have none: "
                               "evaluate with protocol all_classes or base_to_new and validation few or full, or give "
                               "Episodes(validation=..., validation_labels=...)")
        grid: Any = self.values
        return search_grid(self.made, episode.validation, episode.validation_labels, grid).method
