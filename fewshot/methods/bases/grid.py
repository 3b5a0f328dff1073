"""Methods whose logits for many values of their hyper-parameters cost little more than those for one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.methods.contract import Method, narrowed

Values = Mapping[str, float]  # hyper-parameter -> value


def equal_steps(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` on in equal steps, `high` not among them: the grids of Tip-Adapter and its successors."""
    return tuple(low + number * (high - low) / count for number in range(count))


def linear(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` to `high` in equal steps."""
    return tuple(low + number * (high - low) / (count - 1) for number in range(count))


class GridMethod(Method):
    """A method that computes in two steps, so that a search repeats only the second one:

        logits = base + sum over `multipliers` of its value * its part,    (base, *parts) = parts(shared(episodes))

    multipliers   hyper-parameters that only multiply a part, in the order of the parts
    reused        hyper-parameters that `shared` does not read, `multipliers` among them: a search of these calls it once

    `fewshot.tune` and `fewshot.search_grid` find out by `isinstance` whether a method is one.
    """

    multipliers: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def reused(self) -> tuple[str, ...]:
        """Names of hyper-parameters."""

    @property
    def works_on_support(self) -> bool:
        """Whether what `shared` and `parts` do on the support alone outweighs the rest, as training does: a search then
        takes as many queries at once as memory allows, to repeat it seldom."""
        return bool(getattr(self, "trained", False))

    @abc.abstractmethod
    def shared(self, episodes: Episodes) -> Any:
        """What does not depend on `reused`, such as similarities of queries and support."""

    @abc.abstractmethod
    def parts(self, shared: Any) -> tuple[Tensor, ...]:
        """(base, one part for each of `multipliers`), each [E, N, Q]: no value of a multiplier is read."""

    def __call__(self, episodes: Episodes) -> Tensor:
        return self.combined(self.parts(self.shared(episodes)))

    def combined(self, parts: Sequence[Tensor], values: Values | None = None) -> Tensor:
        """Logits [E, Q, N] of `parts`, with these values of the multipliers; those left out are this method's."""
        total = parts[0]
        for name, part in zip(self.multipliers, parts[1:], strict=True):
            value = getattr(self, name) if values is None or name not in values else values[name]
            total = torch.add(total, part, alpha=value)
        return total.transpose(1, 2)

    def answer(self, parts: Sequence[Tensor], dtype: torch.dtype, values: Values | None = None) -> Tensor:
        """The logits of a call on features of `dtype`, from its parts: these may have been computed in float64."""
        logits = self.combined(parts, values)
        return narrowed(logits) if logits.dtype == torch.float64 != dtype else logits

    def logits_over(self, episodes: Episodes, settings: Sequence[Values]) -> Iterator[tuple[int, Tensor]]:
        """(number, logits [E, Q, N]) of every one of `settings`, which give values for some of `reused`. The logits are
        to the last bit those of the method with these values; those that share parts come one after the other."""
        shared, together = self.shared(episodes), self.groups(settings)
        for numbers in together.values():
            parts = self.changed(settings[numbers[0]]).parts(shared)
            for number in numbers:
                yield number, self.answer(parts, episodes.query.dtype, settings[number])

    def groups(self, settings: Sequence[Values]) -> dict[tuple, list[int]]:
        """The numbers of the settings that differ in multipliers alone, by their other values."""
        found: dict[tuple, list[int]] = {}
        for number, values in enumerate(settings):
            others = tuple(value for name, value in values.items() if name not in self.multipliers)
            found.setdefault(others, []).append(number)
        return found

    def changed(self, values: Values) -> Any:
        """This method with other values."""
        made: Any = self  # a dataclass, as the base itself is not
        return dataclasses.replace(made, **values)
