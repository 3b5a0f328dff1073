"""Feature normalisations that several methods share."""

from __future__ import annotations

from torch import Tensor

from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.ops.distances import l2_normalise

NORMS = ("un", "l2n", "cl2n")


def normalise_episodes(episodes: Episodes, norm: str, base_mean: Tensor | None = None) -> Episodes:
    """SimpleShot's three normalisations: "un" nothing, "l2n" x/|x|, "cl2n" (x - m)/|x - m| with m = base_mean [D],
    the mean feature of the base classes (never of the episode)."""
    if norm == "un":
        return episodes
    if norm == "l2n":
        return episodes.with_features(l2_normalise)
    if norm != "cl2n":
        raise FewshotError(f"norm={norm!r}; choose one of {', '.join(NORMS)}")
    if base_mean is None:
        raise FewshotError("norm='cl2n' subtracts the mean feature of the base classes: call method.fit(base_bank) first, "
                           "or choose norm='l2n'")
    mean = base_mean.to(episodes.support)
    return episodes.with_features(lambda x: l2_normalise(x - mean))


def power_transform(x: Tensor, beta: float, epsilon: float = 1e-6) -> Tensor:
    """sign(x) (|x| + epsilon)^beta elementwise. For non-negative features this is PT-MAP's (x + epsilon)^beta;
    keeping the sign makes signed features finite too."""
    magnitude = (x.abs() + epsilon).pow(beta)
    return magnitude.where(x >= 0, -magnitude)
