"""`search_grid`: the best of a grid of hyper-parameters on labelled episodes, without trying each value."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_PIECE = 1 << 16  # elements of the parts that are compared at a time
_SUPPORT_BLOCK_BYTES = 256 << 20  # for methods that do most of their work on the support, once a block
_ROUNDING = 8  # units in the last place of the largest terms: what two ways of adding them may differ by


@dataclass(frozen=True, eq=False)
class GridSearch:
    """What a search found.

    values    of the best setting; of several equal ones the first
    right     int64 [values of the first name, of the second, ...]: queries that each setting answers right, of `queries`
    method    with the best values
    """

    values: dict[str, Any]
    right: Tensor
    queries: int
    method: Method

    @property
    def correct(self) -> int:
        """Right answers of the best setting."""
        return int(self.right.max())

    @property
    def accuracy(self) -> float:
        return self.correct / self.queries

    def __repr__(self) -> str:
        best = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                         for name, value in self.values.items())
        return (f"<GridSearch: {best} of {self.right.numel():,} settings, {self.correct:,} of {self.queries:,} queries "
                f"right ({self.accuracy:.2%})>")


@torch.no_grad()
def search_grid(method: Method, episodes: Episodes, labels: Tensor | ArrayLike, grid: Mapping[str, Sequence]) -> GridSearch:
    """The setting of `grid` with which `method` answers most queries right; ties go to the first.

    episodes   validation episodes, E >= 1, such as one with all classes and a few images of each as queries
    labels     [E, Q] int64 of the queries, 0 .. ways-1; a NumPy array or lists, too
    grid       hyper-parameter -> values, the first name in the outermost loop

    The answers are those of a loop over the settings. A `GridMethod` (`tip_adapter`, `gda`, ...) is not called in one:
    along the multiplier with most values a query is right in an interval, whose ends follow from one comparison with every
    other class. Where rounding decides, the method is asked. Similarities are computed once, in blocks of queries of a few
    megabytes where queries do not depend on each other. Other methods are called once for every setting.

    Choose on validation classes or images, never on those that are reported: with the protocol `all_classes` each draw has
    some, `search_grid(method, draw.validation, draw.validation_labels, grid)`.

    Raises FewshotError for labels of another shape or range, unknown hyper-parameters and values that a method refuses.
    """
    labels = as_tensor("labels", labels)
    _check_labels(episodes, labels)
    settings = _product(method, grid)
    if isinstance(method, GridMethod):
        right = _counts(method, episodes, labels, settings)
    else:
        right = torch.stack([_right(_changed(method, values)(episodes), labels).sum() for values in settings])
    best = settings[int(torch.nonzero(right == right.max())[0])]  # argmax may be any of several
    return GridSearch(best, right.view([len(values) for values in grid.values()]), labels.numel(), _changed(method, best))


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """bool [E, Q] of logits [E, Q, N]: as an evaluation counts."""
    return best_class(logits.transpose(1, 2)) == labels


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


def _counts(method: GridMethod, episodes: Episodes, labels: Tensor, settings: list[dict[str, Any]]) -> Tensor:
    """int64 [settings]: how many queries each setting answers right."""
    found = torch.zeros(len(settings), dtype=torch.int64)
    for fixed, numbers in _by_shared(method, settings):
        inner = [{name: value for name, value in settings[number].items() if name in fixed.reused} for number in numbers]
        groups = fixed.groups(inner).values()
        counts = torch.zeros(len(numbers), dtype=torch.int64)
        for part, wanted in _blocks(fixed, episodes, labels):
            shared = fixed.shared(part)
            for group in groups:
                counts[group] += _counts_of(fixed, shared, wanted, [inner[number] for number in group], part.query.dtype)
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
    room = _SUPPORT_BLOCK_BYTES if isinstance(method, GridMethod) and method.works_on_support else _BLOCK_BYTES
    most = max(1, room // (episodes.query.element_size() * max(items, episodes.ways)))
    if method.setting == "transductive":
        most = max(most, queries)
    for start in range(0, len(episodes), max(1, most // queries)):
        some = slice(start, start + max(1, most // queries))
        part = episodes[some]
        for first in range(0, queries, most):
            here = slice(first, first + most)
            whole = first == 0 and most >= queries
            yield part if whole else part.replace(query=part.query[:, here]), labels[some, here]


def _counts_of(method: GridMethod, shared: Any, labels: Tensor, settings: list[dict[str, Any]],
               dtype: torch.dtype) -> Tensor:
    """int64 [settings] that differ in multipliers alone: right answers to queries of these labels [E, Q] and this dtype."""
    method = method.changed(settings[0])  # the values of the others
    parts, names = method.parts(shared), method.multipliers
    if not names:
        return _right(method.answer(parts, dtype), labels).sum().cpu().expand(len(settings))
    present = [getattr(method, name) for name in names]
    each = [tuple(float(values.get(name, at)) for name, at in zip(names, present, strict=True)) for values in settings]
    values = {name: sorted(set(column)) for name, column in zip(names, zip(*each, strict=True), strict=True)}
    places = [{value: place for place, value in enumerate(values[name])} for name in names]
    size = max(1, _PIECE // (len(labels) * parts[0].shape[1]))
    table = torch.zeros([len(values[name]) for name in names], dtype=torch.int64)
    for start in range(0, labels.shape[1], size):
        here = slice(start, start + size)
        _count_into(table, method, [part[..., here] for part in parts], labels[:, here], values, dtype)
    index = [[places[i][value[i]] for value in each] for i in range(len(names))]
    return table[tuple(map(torch.tensor, index))]


def _count_into(table: Tensor, method: GridMethod, parts: Sequence[Tensor], labels: Tensor, values: dict[str, list[float]],
                dtype: torch.dtype) -> None:
    """Add the right answers by the parts [E, N, Q] of the logits for all `values` of the multipliers."""
    base, rounding = parts[0], _ROUNDING * torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    along = max(values, key=lambda name: len(values[name]))
    rest = [name for name in method.multipliers if name != along]
    # Without negative zeros, whose sign a division by them would carry on.
    ahead = {name: _ahead(each, labels) + 0.0 for name, each in zip(method.multipliers, parts[1:], strict=True)}
    size = {name: each.abs().amax(1, keepdim=True) for name, each in zip(method.multipliers, parts[1:], strict=True)}
    axis = torch.tensor(values[along], dtype=base.dtype, device=base.device)
    largest = base.abs().amax(1, keepdim=True) + size[along] * axis.abs().max()
    right_along = _along(axis, ahead[along])
    # The true class is ahead of itself, whatever is added.
    start = _ahead(base, labels).scatter_(1, labels.unsqueeze(1), _largest(base) / 4)
    rows = table.movedim(method.multipliers.index(along), -1)
    for place in itertools.product(*(range(len(values[name])) for name in rest)):
        others = {name: values[name][at] for name, at in zip(rest, place, strict=True)}
        lead, room = start, largest
        for name, value in others.items():
            lead, room = torch.add(lead, ahead[name], alpha=value), torch.add(room, size[name], alpha=abs(value))
        sure, possible = right_along(lead, rounding * room)
        for at in (sure != possible).nonzero()[:, 0].tolist():
            asked = method.answer(parts, dtype, {**others, along: values[along][at]})
            sure[at] = _right(asked, labels).sum()
        rows[place] += sure.cpu()


def _ahead(part: Tensor, labels: Tensor) -> Tensor:
    """[E, N, Q] by how much the class labels [E, Q] leads each class of `part`."""
    return part.gather(1, labels.unsqueeze(1)) - part


def _largest(like: Tensor) -> float:
    """A number whose square is finite."""
    return torch.finfo(like.dtype).max ** 0.5


def _along(axis: Tensor, slope: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of a lead [E, N, Q] for each v of the axis the number of queries with lead + v slope > 0 for all classes, whatever is
    added between -off and off [E, 1, Q]; and the number of those with whom that may be so."""
    inverse = slope.reciprocal().neg_().clamp_(-_largest(slope), _largest(slope))
    width = inverse.abs()
    # An end counts on one side: where() with -inf and inf would take ten times as long as these sums.
    sides = torch.copysign(slope.new_tensor(math.inf), slope)
    below, above, v = sides.clamp(max=0), sides.clamp(min=0), axis.unsqueeze(1)

    def count(lead: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.addcmul(below, lead, inverse)
        low, surely_low = (torch.addcmul(ends, width, off, value=sign).amax(1).flatten() for sign in (-1, 1))
        ends = torch.addcmul(above, lead, inverse)
        high, surely_high = (torch.addcmul(ends, width, off, value=sign).amin(1).flatten() for sign in (1, -1))
        return ((v > surely_low) & (v < surely_high)).sum(1), ((v >= low) & (v <= high)).sum(1)

    return count
