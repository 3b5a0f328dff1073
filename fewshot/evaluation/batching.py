"""Answers of a method to many batches of episodes, in the sizes that suit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import IterativeMethod, Method, Refinement, TwoStageMethod

_SOLVE_BYTES = 8 << 20  # reduced features that a two-stage method solves together: its arrays stay in the third level
_SOLVE = 1024  # episodes it solves together at most
_ANSWER_BYTES = 2 << 20  # logits handed out together: checks and measures cost calls, not arithmetic


def answers(method: Method, batches: Iterable[Episodes]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """(logits [E, Q, N], and of an iterative method also `iterations` and `converged` [E]) of all episodes in order, those
    of several batches together.

    Raises FewshotError for logits that are not finite.
    """
    for found in _together(_named(answer) for answer in _raw(method, batches)):
        logits = found.pop("logits")
        check_finite(method, logits)
        yield logits, found


def check_finite(method: Method, logits: Tensor) -> None:
    """Raise FewshotError for logits [E, Q, N] that are not finite."""
    # A finite sum has finite terms, and is several times faster to look at.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
        raise FewshotError(f"{type(method).__name__} returned logits that are not finite (episode {bad} of a chunk of "
                           f"{len(logits)}); check the features, or use float64")


def _named(answer: Tensor | Refinement) -> dict[str, Tensor]:
    if isinstance(answer, Refinement):
        return {"logits": answer.logits, "iterations": answer.iterations.int(), "converged": answer.converged}
    return {"logits": answer}


def _together(answers: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same episodes in fewer, larger parts; answers are copied as they come, so that none is kept alive among the freed
    features of its batch."""
    held: dict[str, Tensor] = {}
    filled = room = 0
    for answer in answers:
        count = len(answer["logits"])
        if filled and filled + count > room:
            yield {name: values[:filled] for name, values in held.items()}
            filled = 0
        if not filled:
            room = max(count, _ANSWER_BYTES // answer["logits"][0].nbytes)
            held = {name: _room_for(values, room) for name, values in answer.items()}
        for name, values in answer.items():
            held[name][filled : filled + count] = values
        filled += count
    if filled:
        yield {name: values[:filled] for name, values in held.items()}


def _room_for(values: Tensor, rows: int) -> Tensor:
    """An empty array of `rows` rows like those of `values`, the classes of a query as far apart as there: copies and
    searches are fastest along the longer axis."""
    if values.ndim == 3 and not values.is_contiguous():
        return values.new_empty(rows, values.shape[2], values.shape[1]).transpose(1, 2)
    return values.new_empty(rows, *values.shape[1:])


def _raw(method: Method, batches: Iterable[Episodes]) -> Iterator[Tensor | Refinement]:
    if not isinstance(method, TwoStageMethod):
        # `map` lets go of a batch before it asks for the next one, which can then use the same memory.
        yield from map(method.refine if isinstance(method, IterativeMethod) else method, batches)
        return
    parts, count = [], 0
    for batch in batches:
        parts.append(method.reduce(batch))
        count += len(batch)
        one = parts[-1].query
        features = one.shape[2] * (one.shape[1] + parts[-1].support.shape[1])
        each = one.element_size() * max(features, one.shape[1] * batch.ways)  # with many classes the plans are larger
        if count + len(batch) > min(_SOLVE, _SOLVE_BYTES // each):
            yield method.solve(Episodes.joined(parts))
            parts, count = [], 0
    if parts:
        yield method.solve(Episodes.joined(parts))
