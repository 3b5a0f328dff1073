"""`search_grid`: the best of a grid of hyper-parameters on labelled episodes, without trying each value."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fewshot.core.arrays import as_tensor
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod
from fewshot.methods.contract import METHODS, Method, check_types, method_parameters
from fewshot.ops.class_reductions import best_class

_BLOCK_BYTES = 4 << 20  # of the similarities of a block of queries and the support: they stay in the cache
_ROUNDING = 8  # units in the last place of the largest terms: what two ways of adding them may differ by


@dataclass(frozen=True, eq=False)
class GridSearch:
    """What a search found.

    values    of the best setting; of several equal ones the first
    correct   queries that it answers right, of `queries`
    method    with these values
    at_most   int64 [values of the first name, of the second, ...]: no setting answers more than this right. Exact but for
              queries whose two best logits are equal to rounding; a bank in float64 has none
    """

    values: dict[str, Any]
    correct: int
    queries: int
    method: Method
    at_most: Tensor

    @property
    def accuracy(self) -> float:
        return self.correct / self.queries

    def __repr__(self) -> str:
        best = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                         for name, value in self.values.items())
        return (f"<GridSearch: {best} of {self.at_most.numel():,} settings, {self.correct:,} of {self.queries:,} queries "
                f"right ({self.accuracy:.2%})>")


@torch.no_grad()
def search_grid(method: Method, episodes: Episodes, labels: Tensor | ArrayLike, grid: Mapping[str, Sequence]) -> GridSearch:
    """The setting of `grid` with which `method` answers most queries right; ties go to the first.

    episodes   validation episodes, E >= 1, such as one with all classes and a few images of each as queries
    labels     [E, Q] int64 of the queries, 0 .. ways-1; a NumPy array or lists, too
    grid       hyper-parameter -> values, the first name in the outermost loop

    The answer is that of a loop over the settings. A `GridMethod` (`tip_adapter`, `tip_x`, `ape`) is not called in one:
    along the multiplier with most values a query is right in an interval, whose ends follow from one comparison with
    every other class. These intervals bound how many queries each setting answers right, and settings are evaluated from
    the highest bound down until none can be better. Similarities are computed once, in blocks of queries of a few
    megabytes where queries do not depend on each other. Other methods are called once for every setting.

    Choose on validation classes or images, never on those that are reported.

    Raises FewshotError for labels of another shape or range, unknown hyper-parameters and values that a method refuses.
    """
    labels = as_tensor("labels", labels)
    _check_labels(episodes, labels)
    settings = _product(method, grid)
    bound = _bounds(method, episodes, labels, settings)
    best, correct, batch = 0, -1, 1
    # From the highest bound down, and of equal bounds in the order of the grid; the first one is mostly the answer.
    order = torch.argsort(bound, descending=True, stable=True).tolist()
    while order and (bound[order[0]] > correct or (bound[order[0]] == correct and order[0] < best)):
        numbers, order, batch = order[:batch], order[batch:], 2 * batch
        right = _counted(method, episodes, labels, [settings[number] for number in numbers])
        for number, count in zip(numbers, right.tolist(), strict=True):
            bound[number] = count
            if count > correct or (count == correct and number < best):
                best, correct = number, count
    shape = tuple(len(values) for values in grid.values())
    return GridSearch(settings[best], correct, labels.numel(), _changed(method, settings[best]), bound.view(shape))


def _check_labels(episodes: Episodes, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != episodes.query.shape[:2]:
        raise FewshotError(f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected int64 [E, Q] = "
                           f"{tuple(episodes.query.shape[:2])}")
    if int(labels.min()) < 0 or int(labels.max()) >= episodes.ways:
        raise FewshotError(f"labels span {int(labels.min())}..{int(labels.max())}; expected 0..{episodes.ways - 1}")


def _product(method: Method, grid: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """Every setting of the grid in its order, with values that the method takes."""
    if not grid or not all(len(values) for values in grid.values()):
        raise FewshotError(f"grid={dict(grid)!r}; give values for at least one hyper-parameter, none without values")
    given: Any = method
    name = next((name for name in METHODS if METHODS[name] is type(given)), None)
    if name is None or not dataclasses.is_dataclass(given):
        raise FewshotError(f"{type(given).__name__} has no hyper-parameters to search; give a registered method that is a "
                           "dataclass, such as create_method('tip_adapter')")
    known = method_parameters(name)
    for key, values in grid.items():
        if key not in known:
            raise FewshotError(unknown_message(f"parameter of {name}", key, list(known)))
        for value in values:  # each alone: the method names the one that it refuses
            check_types(name, type(given), {key: value})
            _changed(method, {key: value})
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _changed(method: Method, values: Mapping[str, Any]) -> Method:
    made: Any = method  # a dataclass
    return dataclasses.replace(made, **values)


def _bounds(method: Method, episodes: Episodes, labels: Tensor, settings: list[dict[str, Any]]) -> Tensor:
    """int64 [settings]: at least as many queries as each setting answers right."""
    if not isinstance(method, GridMethod):
        return torch.full((len(settings),), labels.numel())
    found = torch.zeros(len(settings), dtype=torch.int64)
    rounding = _ROUNDING * torch.finfo(episodes.query.dtype).eps
    for fixed, numbers in _by_shared(method, settings):
        inner = [{name: settings[number][name] for name in settings[number] if name in fixed.reused} for number in numbers]
        counts = torch.zeros(len(numbers), dtype=torch.int64)
        for part, wanted in _blocks(fixed, episodes, labels):
            shared = fixed.shared(part)
            for group in fixed.groups(inner).values():
                counts[group] += _bounds_of(fixed, shared, wanted, [inner[number] for number in group], rounding)
        found[numbers] = counts
    return found


def _by_shared(method: GridMethod, settings: list[dict[str, Any]]) -> Iterator[tuple[GridMethod, list[int]]]:
    """The method with each of the combinations of values that `shared` reads, and the numbers of their settings."""
    found: dict[str, tuple[GridMethod, list[int]]] = {}
    for number, values in enumerate(settings):
        read = {name: value for name, value in values.items() if name not in method.reused}
        found.setdefault(repr(read), (method.changed(read), []))[1].append(number)
    return iter(found.values())


def _blocks(method: Method, episodes: Episodes, labels: Tensor) -> Iterator[tuple[Episodes, Tensor]]:
    """Blocks of episodes and of queries, where these do not depend on each other, with their labels."""
    items, queries = episodes.support.shape[1], episodes.query.shape[1]
    most = max(1, _BLOCK_BYTES // (episodes.query.element_size() * max(items, episodes.ways)))
    if method.setting == "transductive":
        most = max(most, queries)
    for start in range(0, len(episodes), max(1, most // queries)):
        some = slice(start, start + max(1, most // queries))
        part = episodes[some]
        for first in range(0, queries, most):
            here = slice(first, first + most)
            whole = first == 0 and most >= queries
            yield part if whole else part.replace(query=part.query[:, here]), labels[some, here]


def _bounds_of(method: GridMethod, shared: Any, labels: Tensor, settings: list[dict[str, Any]], rounding: float) -> Tensor:
    """[settings] that differ in multipliers alone: how many queries of these labels [E, Q] each may answer right, where sums
    are off by `rounding` times their largest term."""
    base, *parts = method.changed(settings[0]).parts(shared)
    if not parts:
        return (_ahead(base, labels.unsqueeze(1)) >= -rounding * base.abs().max()).all(1).sum().expand(len(settings))
    values = {name: sorted({float(each.get(name, getattr(method, name))) for each in settings})
              for name in method.multipliers}
    along = max(values, key=lambda name: len(values[name]))
    rest = [name for name in method.multipliers if name != along]
    # Without negative zeros, whose sign the division below would carry on.
    part = {name: each + 0.0 for name, each in zip(method.multipliers, parts, strict=True)}
    own = labels.unsqueeze(1)
    ahead = {name: _ahead(each, own) for name, each in part.items()}
    start, axis = _ahead(base, own), torch.tensor(values[along], dtype=base.dtype, device=base.device)
    size = {name: float(each.abs().max()) for name, each in part.items()}
    largest = float(base.abs().max()) + size[along] * float(axis.abs().max())
    counts: dict[tuple[float, ...], int] = {}
    for others in itertools.product(*(values[name] for name in rest)):
        lead, room = start, largest
        for name, value in zip(rest, others, strict=True):
            lead, room = torch.add(lead, ahead[name], alpha=value), room + abs(value) * size[name]
        low, high = (ends.flatten() for ends in _interval(lead + rounding * room, ahead[along]))
        right = ~(axis[:, None] < low) & ~(axis[:, None] > high)  # an undefined end bounds nothing
        counts |= {(value, *others): count for value, count in zip(values[along], right.sum(1).tolist(), strict=True)}
    return torch.tensor([counts[tuple(float(each.get(name, getattr(method, name))) for name in (along, *rest))]
                         for each in settings])


def _ahead(part: Tensor, own: Tensor) -> Tensor:
    """[E, N, Q] by how much the true class own [E, 1, Q] leads each class of `part`."""
    return part.gather(1, own) - part


def _interval(lead: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """[E, Q] the smallest and the largest v with lead + v slope >= 0 for all classes of [E, N, Q]; the former above the
    latter where there is none. `lead` of the true class is positive and its slope 0."""
    ends = lead.div(slope).neg_()
    # -inf for falling and inf for rising lines, cut to 0 on the side where an end counts: where() takes ten times as long.
    sides = torch.copysign(ends.new_tensor(math.inf), slope)
    return (ends + sides.clamp(max=0)).amax(1), (ends + sides.clamp(min=0)).amin(1)


def _counted(method: Method, episodes: Episodes, labels: Tensor, settings: list[dict[str, Any]]) -> Tensor:
    """int64 [settings]: how many queries each answers right, by its logits."""
    found = torch.zeros(len(settings), dtype=torch.int64)
    for part, wanted in _blocks(method, episodes, labels):
        for number, logits in _each(method, part, settings):
            found[number] += (best_class(logits.transpose(1, 2)) == wanted).sum()
    return found


def _each(method: Method, episodes: Episodes, settings: list[dict[str, Any]]) -> Iterator[tuple[int, Tensor]]:
    """(number, logits) of all settings."""
    if not isinstance(method, GridMethod):
        yield from ((number, _changed(method, values)(episodes)) for number, values in enumerate(settings))
        return
    for fixed, numbers in _by_shared(method, settings):
        inner = [{name: value for name, value in settings[number].items() if name in fixed.reused} for number in numbers]
        yield from ((numbers[place], logits) for place, logits in fixed.logits_over(episodes, inner))
