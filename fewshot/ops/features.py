"""Feature normalisations that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.core.checked import check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.distances import l2_normalise

NORMS = ("un", "l2n", "cl2n")


def normalise_episodes(episodes: Episodes, norm: str, base_mean: Tensor | None = None) -> Episodes:
    """SimpleShot's three normalisations: "un" nothing, "l2n" x/|x|, "cl2n" (x - m)/|x - m| with m = base_mean [D],
    the mean feature of the base classes (never of the episode)."""
    episodes = off_base_mean(episodes, norm, base_mean)
    return episodes if norm == "un" else episodes.with_features(l2_normalise)


def off_base_mean(episodes: Episodes, norm: str, base_mean: Tensor | None) -> Episodes:
    """The first step of `normalise_episodes`: "cl2n" subtracts base_mean, the others nothing."""
    check_choice(NORMS, norm=norm)
    if norm != "cl2n":
        return episodes
    if base_mean is None:
        raise FewshotError("norm='cl2n' subtracts the mean feature of the base classes: call method.fit(base_bank) first, "
                           "or choose norm='l2n'")
    mean = base_mean.to(episodes.support)
    return episodes.with_features(lambda x: x - mean)


def power_transform(x: Tensor, beta: float, epsilon: float = 1e-6) -> Tensor:
    """sign(x) (|x| + epsilon)^beta elementwise. For non-negative features this is PT-MAP's (x + epsilon)^beta;
    keeping the sign makes signed features finite too."""
    # In place: a fresh array of this size costs more than the arithmetic.
    power = x.abs().add_(epsilon)
    power = power.sqrt_() if beta == 0.5 else power.pow_(beta)
    if torch.compiler.is_exporting():  # a graph cannot look at the values first
        return torch.where(x < 0, -power, power)
    # copysign is several times faster than torch.where; -0.0 counts as positive.
    return power.copysign_(x + 0.0) if bool((x < 0).any()) else power


def centre_episodes(episodes: Episodes, separately: bool = False) -> Episodes:
    """Subtract a mean of each episode: that of support and query together, or `separately` from each its own.

    Unlabelled points are shifted by the joint mean, or by their own. Transductive: uses all queries. A single point is
    its own mean, which would leave nothing of it: it is shifted by the mean of the support.
    """
    parts = (episodes.support, episodes.query, episodes.unlabelled)
    means: list[Tensor | None]
    if separately:
        means = [None if x is None else (x if x.shape[1] > 1 else episodes.support).mean(1, keepdim=True) for x in parts]
    else:
        shots, queries = episodes.support.shape[1], episodes.query.shape[1]
        total = episodes.support.sum(1, keepdim=True) + episodes.query.sum(1, keepdim=True)
        means = [total / (shots + queries)] * 3
    support, query, unlabelled = (None if x is None or m is None else x - m for x, m in zip(parts, means, strict=True))
    return episodes.replace(support=support, query=query, unlabelled=unlabelled)


def scale_to_query_range(episodes: Episodes) -> Episodes:
    """Map every channel so that the queries of the episode span 0 to 1 (PADDLE's min-max scaling; a channel that is
    constant over the queries is shifted only). Transductive: uses all queries.

    The released code subtracts the minimum of the unscaled queries; that differs by a shift common to all points.
    """
    low = episodes.query.amin(1, keepdim=True)
    width = episodes.query.amax(1, keepdim=True) - low
    width = width.where(width > 0, 1)
    return episodes.with_features(lambda x: (x - low) / width)


def tukey_transform(x: Tensor, beta: float) -> Tensor:
    """sign(x) |x|^beta elementwise, and log x at beta = 0 (Tukey's ladder of powers).

    The logarithm is of x + 1e-6, so that zero features stay finite; negative features raise FewshotError there.
    """
    if beta != 0:
        return x.sign() * x.abs().pow(beta)
    if (x < 0).any():
        raise FewshotError(f"tukey(0) is a logarithm, but a feature is {float(x.min()):.4g}; use a positive beta, or "
                           "features from after the last ReLU")
    return (x + 1e-6).log()


def standardise(x: Tensor) -> Tensor:
    """Mean 0 and (unbiased) standard deviation 1 over the channels of each point; a constant point becomes zero."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = centred.square().sum(-1, keepdim=True).div(max(x.shape[-1] - 1, 1)).sqrt()
    # Below this, the deviation is the rounding error of the mean.
    flat = deviation <= 10 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)
    return (centred / deviation.clamp_min(torch.finfo(x.dtype).tiny)).masked_fill(flat, 0)


def centred_unit(episodes: Episodes) -> Episodes:
    """Support and queries each minus their own mean (see `centre_episodes`), every point then divided by its length."""
    return centre_episodes(episodes, separately=True).with_features(l2_normalise)


def channel_importance(x: Tensor, k: float = 1.3, released: bool = False) -> Tensor:
    """phi(x) = 1 / ln(1/x + 1)^k elementwise, phi(0) = 0, continued as an odd function to negative features.

    Luo et al. 2022 (arXiv:2206.08126, eq. 2). The `released` code adds 1e-5 to x, separately for the positive and the
    negative half: at 0 the halves cancel, every other channel keeps an offset of 1/ln(1e5 + 1)^k, against its sign.
    """
    if released:
        positive, negative = ((1 / (half + 1e-5) + 1).log().pow(-k) for half in (x.clamp_min(0), (-x).clamp_min(0)))
        return positive - negative
    # Below `tiny`, 1/x overflows; phi is 0 to rounding there, and the clamp keeps its gradient finite.
    magnitude = x.abs().clamp_min(torch.finfo(x.dtype).tiny)
    return x.sign() * magnitude.reciprocal().log1p().pow(-k)
