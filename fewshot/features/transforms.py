"""Feature transforms: a chain of small steps applied to episodes before any method, written as one line of text.

    chain = parse_transforms("power(0.5),center_base,l2").fit(base_bank)
    logits = method(chain(episodes))

Every step says whether it makes the result transductive, so that a table can say so too. `str(chain)` is the canonical
text with all arguments written out; it parses back to an equal chain.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry
from fewshot.core.spec_text import read_steps, write_step
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.ops import features as ops
from fewshot.ops.distances import l2_normalise
from fewshot.ops.span import to_span
from fewshot.ops.text import text_items, unit_texts


class Step(abc.ABC):
    """One transform: a frozen dataclass whose fields are its arguments, registered in TRANSFORMS.

    transductive  the result of a query depends on the other queries
    needs_base    `fit` must see the features of the base classes first
    reads_prompts   it reads single sentences about the classes
    """

    name: ClassVar[str]
    transductive: ClassVar[bool] = False
    reads_prompts: bool = False
    needs_base: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, episodes: Episodes) -> Episodes:
        """The transformed episodes; the given ones are not modified."""

    def fit(self, features: Tensor) -> Step:
        """A copy that knows the base classes' features [M, D], as the steps before this one leave them."""
        return self

    def __str__(self) -> str:
        return write_step(self.name, self)


Made = TypeVar("Made", bound=Step)
TRANSFORMS: Registry[type[Step]] = Registry("transform")


class PointStep(Step):
    """A step that treats every feature vector alike and alone; it can be applied to a bank as well."""

    @abc.abstractmethod
    def point(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""

    def __call__(self, episodes: Episodes) -> Episodes:
        return episodes.with_features(self.point)


def _register(name: str) -> Callable[[type[Made]], type[Made]]:
    def add(cls: type[Made]) -> type[Made]:
        cls.name = name
        made = dataclass(frozen=True)(cls)
        TRANSFORMS.register(name)(made)
        return made

    return add


@_register("l2")
class L2(PointStep):
    """x / |x|; a zero vector stays zero."""

    def point(self, x: Tensor) -> Tensor:
        return l2_normalise(x)


@_register("center_base")
class CenterBase(PointStep):
    """Subtract the mean feature of the base classes; "center_base,l2" is SimpleShot's CL2N."""

    needs_base = True
    mean: Tensor | None = dataclasses.field(default=None, repr=False, compare=False, metadata={"fitted": True})

    def fit(self, features: Tensor) -> CenterBase:
        made: Any = self  # a dataclass, by `_register`
        return dataclasses.replace(made, mean=features.mean(0))

    def point(self, x: Tensor) -> Tensor:
        if self.mean is None:
            raise FewshotError("center_base subtracts the mean of the base classes: call chain.fit(base_bank) first")
        return x - self.mean.to(x)


@_register("center_episode")
class CenterEpisode(Step):
    """Subtract the mean of support and queries together (EASY)."""

    transductive = True

    def __call__(self, episodes: Episodes) -> Episodes:
        return ops.centre_episodes(episodes)


@_register("center_separate")
class CenterSeparate(Step):
    """Subtract from the support its own mean and from the queries theirs (PT-MAP)."""

    transductive = True

    def __call__(self, episodes: Episodes) -> Episodes:
        return ops.centre_episodes(episodes, separately=True)


@_register("range")
class Range(Step):
    """Map every channel so that the queries of the episode span 0 to 1 (PADDLE)."""

    transductive = True

    def __call__(self, episodes: Episodes) -> Episodes:
        return ops.scale_to_query_range(episodes)


@_register("channels")
class Channels(PointStep):
    """Only the channels from `first` to the one before `last`, of texts, too: a part of features that lie side by side.
    last=0 is the end."""

    first: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or (self.last != 0 and self.last <= self.first):
            raise FewshotError(f"channels({self.first},{self.last}): give the first one, 0 or more, and the one after the "
                               "last, 0 for the end")

    def point(self, x: Tensor) -> Tensor:
        if max(self.first + 1, self.last) > x.shape[-1]:
            raise FewshotError(f"{self} of {x.shape[-1]} channels; they are counted from 0, and last may be {x.shape[-1]}")
        return x[..., self.first : self.last or None]

    def __call__(self, episodes: Episodes) -> Episodes:
        dim = episodes.query.shape[-1]
        given = {name: getattr(episodes, name) for name in ("text", "prompts")}
        texts = {name: self.point(x) for name, x in given.items() if x is not None and x.shape[-1] == dim}
        return super().__call__(episodes).replace(**texts)


@_register("power")
class Power(PointStep):
    """sign(x) (|x| + 1e-6)^beta (PT-MAP, 0.5)."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise FewshotError(f"power(beta={self.beta}): beta must be positive; tukey(0) is the logarithm")

    def point(self, x: Tensor) -> Tensor:
        return ops.power_transform(x, self.beta)


@_register("tukey")
class Tukey(PointStep):
    """sign(x) |x|^beta, or log(x + 1e-6) at beta=0, which needs features without negative values."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise FewshotError(f"tukey(beta={self.beta}): beta must be 0 (the logarithm) or positive")

    def point(self, x: Tensor) -> Tensor:
        return ops.tukey_transform(x, self.beta)


@_register("standardise")
class Standardise(PointStep):
    """Mean 0 and standard deviation 1 over the channels of each point (OpTA)."""

    def point(self, x: Tensor) -> Tensor:
        return ops.standardise(x)


@_register("channel_importance")
class ChannelImportance(PointStep):
    """1 / ln(1/x + 1)^k (Luo et al. 2022); variant "released" has the offset of the official code, "sane" has not.

    The paper's code applies it before L2 for the nearest class mean, and after L2 for logistic regression.
    """

    k: float = 1.3
    variant: str = "sane"

    def __post_init__(self) -> None:
        if not 0 < self.k < math.inf:
            raise FewshotError(f"channel_importance(k={self.k}): k must be positive")
        if self.variant not in ("sane", "released"):
            raise FewshotError(f"channel_importance(variant={self.variant}): choose sane or released")

    def point(self, x: Tensor) -> Tensor:
        return ops.channel_importance(x, self.k, released=self.variant == "released")


@_register("text_shots")
class TextShots(Step):
    """The text of each class joins its support, `copies` times, at the mean length of the episode's support items: so
    methods that read no texts use them as further shots (Lin et al. 2023, arXiv:2301.06267). copies=0 changes nothing.

    of   "text": one vector a class; "prompts": one for each of its sentences, and its text again for each that it has
         fewer than another class

    A class of k images and c texts has the prototype (k mean + c text) / (k + c). Steps before this one change the images
    alone, steps after it both.
    """

    copies: int = 1
    of: str = "text"

    def __post_init__(self) -> None:
        check_integer("text_shots(copies)", self.copies, 0)
        if self.of not in ("text", "prompts"):
            raise FewshotError(f"text_shots(of={self.of}): choose text or prompts")

    @property
    def reads_prompts(self) -> bool:  # type: ignore[override]
        return self.of == "prompts"

    def __call__(self, episodes: Episodes) -> Episodes:
        if self.copies == 0:
            return episodes
        if (episodes.text if self.of == "text" else episodes.prompts) is None:
            raise FewshotError(f"{self} adds a {self.of.rstrip('s')} of every class, and these episodes have none; make a "
                               "bank with texts (`fewshot embed ... --templates`, or bank.with_texts)")
        items, labels, known = text_items(episodes if self.of == "prompts" else episodes.replace(prompts=None))
        if items.shape[-1] != episodes.support.shape[-1]:
            raise FewshotError(f"{self}: texts have {items.shape[-1]} channels and features {episodes.support.shape[-1]}; "
                               "embed images and texts with one model")
        own = unit_texts(episodes).take_along_dim(labels.unsqueeze(-1), 1)
        items = items.where(known.unsqueeze(-1) > 0, own) * episodes.support.norm(dim=-1).mean(1)[:, None, None]
        return episodes.replace(support=torch.cat([episodes.support, *[items] * self.copies], 1),
                                support_labels=torch.cat([episodes.support_labels, *[labels] * self.copies], 1))


@_register("span")
class Span(Step):
    """Coordinates in the span of the episode's points: fewer dimensions, the same inner products. Not transductive: a
    method that depends on inner products alone answers as before. It must be the last step."""

    def __call__(self, episodes: Episodes) -> Episodes:
        return to_span(episodes, with_text=True)


@dataclass(frozen=True)
class TransformChain:
    """Steps applied in order: `chain(episodes) -> Episodes`. The empty chain returns the episodes themselves."""

    steps: tuple[Step, ...] = ()

    @property
    def transductive(self) -> bool:
        return any(step.transductive for step in self.steps)

    @property
    def needs_base(self) -> bool:
        return any(step.needs_base for step in self.steps)

    @property
    def reads_prompts(self) -> bool:
        return any(step.reads_prompts for step in self.steps)

    def fit(self, base_bank: FeatureBank | None) -> TransformChain:
        """A chain that knows the base classes. Each step sees their features as the steps before it leave them.

        Raises FewshotError if a step needs a base bank and it is None.
        """
        if not self.needs_base:
            return self
        if base_bank is None:
            needing = ", ".join(str(step) for step in self.steps if step.needs_base)
            raise FewshotError(f"{needing} needs the features of the base classes: give a base bank")
        x, steps = base_bank.working().features, []
        last = max(i for i, step in enumerate(self.steps) if step.needs_base)
        for i, step in enumerate(self.steps):
            fitted = step.fit(x)
            steps.append(fitted)
            if i < last:
                assert isinstance(fitted, PointStep), "`parse_transforms` lets no other stand before one that needs the base"
                x = fitted.point(x)
        return TransformChain(tuple(steps))

    def bank(self, base_bank: FeatureBank) -> FeatureBank:
        """The base bank as a method after this (fitted) chain must see it in its own `fit`.

        Raises FewshotError if a step works per episode: a bank has no episodes.
        """
        x = base_bank.working().features
        for step in self.steps:
            if not isinstance(step, PointStep):
                raise FewshotError(f"{step} works per episode, so it cannot be applied to the base bank that the "
                                   "method needs; choose a method or norm without base classes, or leave the step out")
            x = step.point(x)
        return dataclasses.replace(base_bank, features=x)

    def __call__(self, episodes: Episodes) -> Episodes:
        if self.steps and episodes.support.ndim != 3:
            raise FewshotError(f"transforms {str(self)!r} take features [E, S, D]; support has shape "
                               f"{tuple(episodes.support.shape)}: embed the images first")
        episodes = episodes.working() if self.steps else episodes
        validation = episodes.validation
        for step in self.steps:
            episodes = step(episodes)
        if self.steps and validation is not None:  # with the support as it is beside these queries
            episodes = episodes.replace(validation=self(validation))
        return episodes

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))


def parse_transforms(spec: str) -> TransformChain:
    """The chain written as `spec`: names separated by commas, arguments in brackets, "power(0.5),l2" or
    "channel_importance(k=1.3,variant=released)". "" is the empty chain.

    Raises FewshotError on an unknown step or argument (with the nearest names), on a value of the wrong kind, on text
    that does not read, and on an order that cannot be computed.
    """
    steps = read_steps(spec, TRANSFORMS, "transforms", "power(0.5),l2")
    for before, after in zip(steps, steps[1:], strict=False):
        if isinstance(before, Span):
            raise FewshotError(f"span must be the last transform: {after} would depend on its arbitrary coordinates")
    for i, step in enumerate(steps):
        per_episode = [s for s in steps[:i] if not isinstance(s, PointStep)]
        if step.needs_base and per_episode:
            raise FewshotError(f"{step} cannot follow {per_episode[0]}: base statistics are not defined after a step "
                               f"that works per episode; put {step} before it")
    return TransformChain(tuple(steps))
