"""Answers of a method to many batches of episodes, in the sizes that suit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.methods.base import IterativeMethod, Method, Refinement, TwoStageMethod

_SOLVE_BYTES = 8 << 20  # reduced features that a two-stage method solves together: its arrays stay in the third level
_SOLVE = 1024  # episodes it solves together at most


def answers(method: Method, batches: Iterable[Episodes]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """(logits [E, Q, N], and of an iterative method also `iterations` and `converged` [E]) of all episodes in order: batch
    by batch, or of several batches together where the method reduces them first.

    Raises FewshotError for logits that are not finite.
    """
    for answer in _raw(method, batches):
        logits, extra = answer, {}
        if isinstance(answer, Refinement):
            logits, extra = answer.logits, {"iterations": answer.iterations, "converged": answer.converged}
        if not torch.isfinite(logits).all():
            bad = int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
            raise FewshotError(f"{type(method).__name__} returned logits that are not finite (episode {bad} of a chunk of "
                               f"{len(logits)}); check the features, or use float64")
        yield logits, extra


def _raw(method: Method, batches: Iterable[Episodes]) -> Iterator[Tensor | Refinement]:
    if not isinstance(method, TwoStageMethod):
        yield from (method.refine(batch) if isinstance(method, IterativeMethod) else method(batch) for batch in batches)
        return
    parts, count = [], 0
    for batch in batches:
        parts.append(method.reduce(batch))
        count += len(batch)
        one = parts[-1].query
        each = one.element_size() * one.shape[2] * (one.shape[1] + parts[-1].support.shape[1])
        if count + len(batch) > min(_SOLVE, _SOLVE_BYTES // each):
            yield method.solve(_joined(parts))
            parts, count = [], 0
    if parts:
        yield method.solve(_joined(parts))


def _joined(parts: list[Episodes]) -> Episodes:
    if len(parts) == 1:
        return parts[0]
    names = ("support", "support_labels", "query")
    return Episodes.trusted(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
                            ways=parts[0].ways)
