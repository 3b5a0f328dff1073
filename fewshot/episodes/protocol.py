"""Protocols: which episodes are asked for. Every setting of one is described here and nowhere else.

Torch is not imported with this module: the command line reads the fields for its help.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, unknown_message
from fewshot.core.settings import Setting, default_of, one_of, real, setting, settings_of, settle, whole
from fewshot.episodes.query_distributions import QUERY_DISTRIBUTIONS

if TYPE_CHECKING:
    from fewshot.data.banks import FeatureBank, ImageBank
    from fewshot.episodes.sampler import Sampler

PROTOCOLS: Registry[type[Protocol]] = Registry("protocol")


@dataclass(frozen=True)
class Protocol(abc.ABC):
    """Base of all protocols: a frozen dataclass of settings, registered with `@PROTOCOLS.register("name")`.

    Options of commands, headings of tables, axes of figures and the settings in a stored result are made from its fields.
    `str` is its short text, such as "5-way 1-shot".
    """

    name: ClassVar[str]
    usual_episodes: ClassVar[int] = 10_000  # of a run that does not say how many
    covers: ClassVar[str] = "episode sampling"  # what an interval over its episodes is about
    open_settings: tuple[str, ...] = dataclasses.field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        settle(self)
        self.check()

    def check(self) -> None:  # noqa: B027 - most need none
        """Raise FewshotError for settings that do not fit each other."""

    @abc.abstractmethod
    def sampler(self, bank: ImageBank | FeatureBank, seed: int) -> Sampler:
        """What draws its episodes from `bank`; raises FewshotError where the bank has too few classes or items."""

    @abc.abstractmethod
    def text(self, without: str = "") -> str:
        """A few words; `without` a setting that is shown elsewhere."""

    def __str__(self) -> str:
        return self.text()

    def settings(self) -> dict[str, Any]:
        """Name -> value of all its settings."""
        return {name: getattr(self, name) for name in settings_of(self)}

    def filled(self, **values: Any) -> Protocol:
        """With values for the settings that were left to the data set (None), now or when `filled` was called before."""
        mine = settings_of(self)
        open_ = tuple(name for name in values if name in mine and
                      (getattr(self, name) is None or name in self.open_settings))
        if not open_:
            return self
        found = dataclasses.replace(self, **{name: values[name] for name in open_})
        object.__setattr__(found, "open_settings", open_)
        return found


@PROTOCOLS.register("episodes")
@dataclass(frozen=True)
class EpisodicProtocol(Protocol):
    """N-way K-shot episodes, see `EpisodeSampler`."""

    name = "episodes"

    ways: int = setting(5, "classes an episode", whole(2), axis="ways", named=True, several=True)
    shots: int = setting(1, "support images a class", whole(1), axis="shots per class", named=True,
                         several=True)
    queries: int | None = setting(None, "query images a class; 15 unless given, 7 on glyphs, whose classes have 12 images",
                                  whole(1, or_none=True), axis="queries per class", several=True)
    query_distribution: str = setting("balanced", "balanced, dirichlet, k_eff or natural", one_of(QUERY_DISTRIBUTIONS),
                                      named=True, several=True)
    alpha: float = setting(2.0, "concentration of the Dirichlet distribution", real(0, low_allowed=False), named=True,
                           axis="alpha of the Dirichlet queries (smaller: less balanced)", several=True,
                           unused=lambda p: p.query_distribution != "dirichlet")
    k_eff: int | None = setting(None, "classes present among the queries (k_eff only)", whole(1, or_none=True), named=True)
    open_classes: int = setting(0, "classes outside the episode that give further queries (open set)", whole(0), named=True,
                                later=True)
    open_queries: int = setting(0, "queries of each of these classes", whole(0), later=True)
    small_classes: str = setting("refuse", "refuse data with a class of too few images, or drop such classes",
                                 one_of(("refuse", "drop")), named=True, later=True)

    def check(self) -> None:
        if (self.query_distribution == "k_eff") != (self.k_eff is not None):
            raise FewshotError(f"k_eff={self.k_eff} with query_distribution={self.query_distribution!r}; k_eff belongs to "
                               "'k_eff' and is required there")
        if self.k_eff is not None and self.k_eff > self.ways:
            raise FewshotError(f"k_eff={self.k_eff}; it must lie between 1 and ways={self.ways}")
        if bool(self.open_classes) != bool(self.open_queries):
            raise FewshotError(f"open_classes={self.open_classes} with open_queries={self.open_queries}; open-set episodes "
                               "need both of at least 1")

    def sampler(self, bank: ImageBank | FeatureBank, seed: int) -> Sampler:
        from fewshot.episodes.sampler import EpisodeSampler

        return EpisodeSampler(bank, seed=seed, **self.settings())

    def text(self, without: str = "") -> str:
        size = {"ways": f"{self.ways}-way", "shots": f"{self.shots}-shot"}
        alpha = "" if without == "alpha" else f"({self.alpha:g})"
        queries = {"balanced": "", "dirichlet": f", Dirichlet{alpha}", "k_eff": f", {self.k_eff} classes present",
                   "natural": ", natural"}[self.query_distribution]
        opened = f", {self.open_classes} open classes" if self.open_classes else ""
        dropped = ", small classes left out" if self.small_classes == "drop" and without != "small_classes" else ""
        return " ".join(value for name, value in size.items() if name != without) + queries + opened + dropped


@PROTOCOLS.register("all_classes")
@dataclass(frozen=True)
class AllClassesProtocol(Protocol):
    """All classes of a data set at once, K training images of each, all its test images as queries: an episode is one draw
    of the training images, see `AllClassesSampler`."""

    name = "all_classes"
    usual_episodes = 10
    covers = "the draw of the training images"

    shots: int = setting(1, "support images a class", whole(1), axis="shots per class", named=True, several=True)
    validation: str = setting("few", "images to choose hyper-parameters on: none, few (min(shots, 4) a class) or full (all "
                              "that there are)", one_of(("none", "few", "full")), named=True)

    def sampler(self, bank: ImageBank | FeatureBank, seed: int) -> Sampler:
        from fewshot.episodes.all_classes import AllClassesSampler

        return AllClassesSampler(bank, seed=seed, **self.settings())

    def text(self, without: str = "") -> str:
        shots = "" if without == "shots" else f", {self.shots}-shot"
        said = {"none": ", no validation images", "few": "", "full": ", full validation set"}
        return "all classes" + shots + ("" if without == "validation" else said[self.validation])


@PROTOCOLS.register("base_to_new")
@dataclass(frozen=True)
class BaseToNewProtocol(AllClassesProtocol):
    """K training images of each of the first half of the classes; tests on these, and on the others, of which a method knows
    the names alone, see `BaseToNewSampler`. The accuracy is the harmonic mean of both. Published with 16 shots."""

    name = "base_to_new"
    def sampler(self, bank: ImageBank | FeatureBank, seed: int) -> Sampler:
        from fewshot.episodes.base_to_new import BaseToNewSampler

        return BaseToNewSampler(bank, seed=seed, **self.settings())

    def text(self, without: str = "") -> str:
        return f"base to new{super().text(without).removeprefix('all classes')}"


def protocol_settings() -> dict[str, Setting]:
    """Name -> Setting of every setting of any protocol."""
    return {name: known for each in PROTOCOLS for name, known in settings_of(PROTOCOLS[each]).items()}


def read_protocol(values: Mapping[str, Any]) -> Protocol:
    """The protocol with the settings `values`, of which "protocol" is its name (default: episodes)."""
    cls = PROTOCOLS[values.get("protocol", EpisodicProtocol.name)]
    known = settings_of(cls)
    for name in values:
        if name != "protocol" and name not in known:
            raise FewshotError(unknown_message(f"setting of the protocol {cls.name}", name, list(known)))
    return cls(**{name: value for name, value in values.items() if name != "protocol"})


def protocol_default(name: str) -> Any:
    """The default of a setting of any protocol."""
    return next(default_of(PROTOCOLS[each], name) for each in PROTOCOLS if name in settings_of(PROTOCOLS[each]))
