"""How an evaluation is done: what its result does not depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.checked import check_at_least
from fewshot.core.errors import FewshotError
from fewshot.core.settings import setting, settle, text, whole

if TYPE_CHECKING:
    from fewshot.features.source import FeatureSource


def _shard(name: str, value: Any) -> tuple[int, int] | None:
    if value is not None and not 0 <= value[0] < value[1]:
        raise FewshotError(f"shard={value[0]}/{value[1]}; shards of n are numbered 0 to n-1")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FewshotError(f"{name}={value!r}; pass True or False")
    return value


@dataclass(frozen=True)
class Work:
    """How the work of an evaluation is shared.

    workers    processes, one thread each (1: this one, with its threads)
    shard      (i, n): only the i-th of n ranges of episodes (0 <= i < n); all of them meet in one store
    device     where methods (and backbones, for images) compute: cpu, cuda, cuda:1, mps, or auto, a GPU where there is one.
               Banks stay where they are, chunks of episodes go over and answers come back
    progress   show progress bars
    """

    workers: int = setting(1, "processes that share the work, one thread each", whole())
    shard: tuple[int, int] | None = setting(None, "only range I of N of the episodes, I from 0; whichever is last, on any "
                                            "host with the same --runs, puts them all together", _shard, metavar="I/N")
    device: str = setting("cpu", "where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, mps", text())
    progress: bool = setting(False, "show progress bars", _flag)

    def __post_init__(self) -> None:
        settle(self)
        check_at_least(1, workers=self.workers)

    @classmethod
    def taken_from(cls, settings: dict[str, Any], work: Work | None = None) -> Work:
        """`work`, or what `settings` say, from which the settings of work are taken out. Raises FewshotError for both."""
        given = {f.name: settings.pop(f.name) for f in fields(cls) if f.name in settings}
        if work is not None and given:
            raise FewshotError(f"work= beside {', '.join(given)}; give one of them")
        return cls(**given) if work is None else work


def source_taken_from(settings: dict[str, Any], work: Work, source: FeatureSource | None = None) -> FeatureSource:
    """`source`, or one with `root` and `cache` of `settings`, which are taken out."""
    given: dict[str, str | Path] = {name: settings.pop(name) for name in ("root", "cache") if name in settings}
    if source is not None:
        if any(value is not None for value in given.values()):
            raise FewshotError(f"source= beside {', '.join(given)}; a FeatureSource has both already")
        return source
    from fewshot.features.source import FeatureSource  # loads backbones: only where images may be needed

    return FeatureSource(**given, progress=work.progress, device=work.device)
