"""`Episodes`: what a method sees. It holds no query labels, so no method can use them."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.html import Markup, html_table, picture
from fewshot.data.precision import HALF, working_dtype

_OF_TEXT = ("text", "prompts", "projection")
_SHOWN, _SIDE = 15, 64  # images a row in a notebook, and pixels of each


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of E few-shot episodes of one shape; a single episode is E=1.

    support         [E, S, ...]  features ([..., D]) or images ([..., C, H, W])
    support_labels  [E, S]       int64, 0 .. ways-1, every class at least once; classes may have unequal shots
    query           [E, Q, ...]  same trailing shape and dtype as support
    ways            number of classes N
    text            [E, N, D]    optional vectors of the classes from their names
    prompts         [E, N, M, D] optional vectors of the M sentences of each class that `text` sums up; of classes with fewer
                                 the last rows are zero
    logit_scale     what the model of the texts multiplies cosines by; None where it is not known, and CLIP's 100 is taken
    logit_bias      what it then adds
    projection      [E, P + 1, D] optional: takes features [P] from before the model's projection to the texts; last the bias
    unlabelled      [E, U, ...]  optional further images without labels
    validation      episodes of the same support whose queries are validation images, for methods that choose their
                    hyper-parameters, with validation_labels [E, V]; None where the protocol has none
    query_lengths   [E, Q]       |z| of the query features where a bank has them ready, else None; not to be given
    working_dtype   what arithmetic on the features takes (`fewshot.data.precision`), or None: their own; not to be given

    Raises FewshotError on a wrong shape, dtype or label range, on NaN or infinity, and on a class
    without support. `Episodes.trusted` skips the checks for tensors that were checked before (a bank's rows).
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    ways: int
    text: Tensor | None = None
    unlabelled: Tensor | None = None
    prompts: Tensor | None = None
    logit_scale: float | None = None
    logit_bias: float = 0.0
    projection: Tensor | None = None
    validation: Episodes | None = None
    validation_labels: Tensor | None = None
    query_lengths: Tensor | None = dataclasses.field(default=None, init=False)
    working_dtype: torch.dtype | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        _check(self)
        if self.support.ndim == 3 and self.support.dtype != torch.float64:
            points = torch.cat([self.support.flatten(0, 1), self.query.flatten(0, 1)]).detach()
            object.__setattr__(self, "working_dtype", working_dtype(points))

    @classmethod
    def trusted(cls, **fields: Any) -> Episodes:
        """Build without checks; only for tensors already validated at a boundary."""
        episodes = object.__new__(cls)
        vars(episodes).update(fields)  # what is not given has its default in the class
        return episodes

    def __len__(self) -> int:
        return self.support.shape[0]

    def __getitem__(self, which: int | slice | Tensor) -> Episodes:
        """Some of the episodes, still batched: `episodes[3]` has E=1. IndexError beyond the end, so a loop ends."""
        if not isinstance(which, slice) and (not isinstance(which, Tensor) or which.ndim == 0):
            position = range(len(self))[operator.index(which)]
            which = slice(position, position + 1)
        return self.map(lambda x: x[which])

    def __iter__(self) -> Iterator[Episodes]:
        return (self[position] for position in range(len(self)))

    def to(self, target: torch.device | str | torch.dtype) -> Episodes:
        """Move to a device, or cast the floating tensors to a dtype (labels stay int64)."""
        if not isinstance(target, torch.dtype):
            return self.map(lambda x: x.to(target))
        cast = self.map(lambda x: x.to(target) if x.is_floating_point() else x)
        if target != self.query.dtype:  # lengths have the precision that they were computed in
            object.__setattr__(cast, "query_lengths", None)
            object.__setattr__(cast, "working_dtype", None)
        return cast

    def working(self) -> Episodes:
        """These episodes in the precision that arithmetic on their features takes."""
        dtype = self.query.dtype
        target = torch.float32 if self.working_dtype is None and dtype in HALF else self.working_dtype
        return self if target is None or target == dtype else self.to(target)

    def with_features(self, transform: Callable[[Tensor], Tensor]) -> Episodes:
        """Apply `transform` to support, query and unlabelled alike (labels and text stay)."""
        unlabelled = None if self.unlabelled is None else transform(self.unlabelled)
        return self.replace(support=transform(self.support), query=transform(self.query), unlabelled=unlabelled)

    def replace(self, **fields: Any) -> Episodes:
        """With other values for some fields, unchecked. With other points, what was known of the old ones goes."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if "query" in fields:
            kept["query_lengths"] = None
        if "support" in fields or "query" in fields:
            kept["working_dtype"] = None
        return Episodes.trusted(**{**kept, **fields})

    @staticmethod
    def joined(parts: Sequence[Episodes]) -> Episodes:
        """The episodes of all parts, of one shape, in their order."""
        if len(parts) == 1:
            return parts[0]
        fields = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(Episodes)}
        join: dict[type, Callable[[list], object]] = {Tensor: torch.cat, Episodes: Episodes.joined}
        return Episodes.trusted(**{name: join.get(type(values[0]), operator.itemgetter(0))(values)
                                   for name, values in fields.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> Episodes:
        """`function` of every tensor, unchecked."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        inner = None if self.validation is None else self.validation.map(function)
        return Episodes.trusted(**{k: function(v) if isinstance(v, Tensor) else v for k, v in fields.items()} |
                                {"validation": inner})

    def _repr_html_(self) -> str:
        """What there is; of stored images those of the first episode, too."""
        parts = {name: getattr(self, name) for name in ("support", "query", "text", "prompts", "unlabelled")}
        rows: list[tuple[str, object]] = [(name, f"{list(values.shape)} {values.dtype}".replace("torch.", ""))
                                          for name, values in parts.items() if values is not None]
        if self.support.ndim == 5 and self.support.dtype == torch.uint8:
            support, labels = self.support[0], self.support_labels[0]
            rows += [(f"support of class {label}", _pictures(support[labels == label])) for label in range(self.ways)]
            rows.append(("queries, in their order", _pictures(self.query[0])))
        counted = "1 episode" if len(self) == 1 else f"{len(self):,} episodes"
        first = ", the first one below" if len(self) > 1 and len(rows) > self.ways + 2 else ""
        return html_table(f"{counted} of {self.ways} classes{first}", rows)


def _pictures(images: Tensor) -> Markup:
    """uint8 [n, C, H, W], at most _SHOWN of them."""
    more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    return Markup(" ".join(picture(image, _SIDE, "") for image in images[:_SHOWN].cpu()) + more)


def _check(e: Episodes) -> None:
    for name in ("support", "support_labels", "query"):
        value = getattr(e, name)
        if not isinstance(value, Tensor):
            raise FewshotError(f"{name} is a {type(value).__name__}; pass a torch.Tensor (torch.as_tensor(x))")
    object.__setattr__(e, "ways", check_integer("ways", e.ways, 2))
    if e.support.ndim < 3 or e.query.ndim != e.support.ndim:
        raise FewshotError(
            f"support has shape {tuple(e.support.shape)} and query {tuple(e.query.shape)}; expected [E, S, ...] and "
            "[E, Q, ...] with the same trailing shape (add a leading axis with x[None] for one episode)")
    if e.support.shape[0] != e.query.shape[0] or e.support.shape[2:] != e.query.shape[2:]:
        raise FewshotError(f"support {tuple(e.support.shape)} and query {tuple(e.query.shape)} differ in the number of "
                           "episodes or in the trailing shape")
    if e.support_labels.shape != e.support.shape[:2]:
        raise FewshotError(f"support_labels has shape {tuple(e.support_labels.shape)}; expected [E, S] = "
                           f"{tuple(e.support.shape[:2])}")
    if e.support_labels.dtype != torch.int64:
        raise FewshotError(f"support_labels has dtype {e.support_labels.dtype}; pass labels.long()")
    if 0 in e.support.shape or 0 in e.query.shape:
        raise FewshotError(f"empty episodes: support {tuple(e.support.shape)}, query {tuple(e.query.shape)}")
    for name in ("support", "query", "unlabelled", *_OF_TEXT):
        value = getattr(e, name)
        if value is not None:
            _check_values(name, value, e.support)
    if e.unlabelled is not None and (len(e.unlabelled) != len(e) or e.unlabelled.shape[2:] != e.support.shape[2:]):
        raise FewshotError(f"unlabelled has shape {tuple(e.unlabelled.shape)}; expected [E, U, ...] with E={len(e)} and the "
                           f"trailing shape {tuple(e.support.shape[2:])} of the support")
    low, high = int(e.support_labels.min()), int(e.support_labels.max())
    if low < 0 or high >= e.ways:
        raise FewshotError(f"support_labels span {low}..{high}; with ways={e.ways} they must lie in 0..{e.ways - 1}")
    present = torch.zeros(len(e), e.ways, dtype=torch.bool, device=e.support_labels.device)
    present.scatter_(1, e.support_labels, True)
    if not present.all():
        episode, label = (~present).nonzero()[0].tolist()
        raise FewshotError(f"class {label} has no support item in episode {episode}; every class needs at least one")
    if e.text is not None and e.text.shape[:2] != (len(e), e.ways):
        raise FewshotError(f"text has shape {tuple(e.text.shape)}; expected [E, N, D] with E={len(e)}, N={e.ways}")
    if e.prompts is not None and (e.prompts.ndim != 4 or e.prompts.shape[:2] != (len(e), e.ways)):
        raise FewshotError(f"prompts have shape {tuple(e.prompts.shape)}; expected [E, N, M, D] with E={len(e)}, N={e.ways}")
    if e.projection is not None and (e.projection.ndim != 3 or len(e.projection) != len(e)):
        raise FewshotError(f"projection has shape {tuple(e.projection.shape)}; expected [E, P + 1, D] with E={len(e)}")
    if e.validation is not None and (e.validation_labels is None or
                                     e.validation_labels.shape != e.validation.query.shape[:2]):
        raise FewshotError("validation without validation_labels [E, V] of its queries; give both")
    if e.logit_scale is not None:
        check_number("logit_scale", e.logit_scale, 0, low_allowed=False)
    check_number("logit_bias", e.logit_bias)


def _check_values(name: str, value: Tensor, support: Tensor) -> None:
    is_image = value.dtype == torch.uint8 and value.ndim == 5
    if not is_image and not value.is_floating_point():
        raise FewshotError(f"{name} has dtype {value.dtype} and shape {tuple(value.shape)}; pass floating-point features "
                           "or uint8 images [E, ., C, H, W]")
    if value.dtype != support.dtype and name not in _OF_TEXT:
        raise FewshotError(f"{name} has dtype {value.dtype} and support {support.dtype}; convert one of them")
    if not is_image and not torch.isfinite(value).all():
        bad = (~torch.isfinite(value)).nonzero()[0].tolist()
        raise FewshotError(f"{name} holds {float(value[tuple(bad)])} at index {bad}; remove or repair that item")
