"""EM pieces for Gaussian and Dirichlet mixtures whose components are the classes of an episode.

Assignments u are stored as [E, N, Q]: with the few classes in front, the softmax over classes runs over contiguous
memory and every M-step is one batched matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.class_reductions import best_class
from fewshot.ops.dirichlet import dirichlet_mm
from fewshot.ops.distances import cosine
from fewshot.ops.prototypes import one_hot, prototypes

SIMPLEX = ("auto", "rows", "text", "prototypes", "cosines")


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """What a Gaussian EM with unit covariance needs of an episode.

    A centroid is w_k = (p_k + sum_i u_ki z_i) / (n_k + sum_i u_ki), so inner products of queries z_i and support sums
    p_k give all distances. One Gram matrix replaces two products with [Q, D] per iteration, unless there are more than
    twice as many queries as dimensions: then these two are less work.

    counts    [E, N]     support items per class
    halves    [E, 1, Q]  |z_i|^2 / 2
    squares   [E, N]     p_k . p_k
    products  gram [E, Q, Q], z_i . z_j, and cross [E, N, Q], p_k . z_i; or None
    points    z [E, Q, D] and p [E, N, D], of features shifted to the query mean; or None
    """

    counts: Tensor
    halves: Tensor
    squares: Tensor
    products: tuple[Tensor, Tensor] | None
    points: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, query: Tensor, sums: Tensor, counts: Tensor) -> GaussianStatistics:
        """From query [E, Q, D] and class sums [E, N, D] of the support, both shifted to the query mean."""
        squares, across = sums.square().sum(-1), query.transpose(1, 2)
        if query.shape[1] > 2 * query.shape[2]:
            return cls(counts, query.square().sum(-1).unsqueeze(1) / 2, squares, None, (query, sums))
        gram = query @ across
        return cls(counts, gram.diagonal(dim1=1, dim2=2).unsqueeze(1) / 2, squares, (gram, sums @ across), None)

    def scaled(self, factor: Tensor) -> GaussianStatistics:
        """The statistics of features multiplied by `factor`."""
        square = factor.square()
        products = None if self.products is None else (self.products[0] * square, self.products[1] * square)
        points = None if self.points is None else (self.points[0] * factor, self.points[1] * factor)
        return GaussianStatistics(self.counts, self.halves * square, self.squares * square, products, points)

    def scores(self, u: Tensor | None) -> Tensor:
        """-|z_i - w_k|^2 / 2 as [E, N, Q] for the centroids of assignments u [E, N, Q]; None: of the support alone."""
        mass = (self.counts if u is None else self.counts + u.sum(-1)).unsqueeze(-1)
        if self.points is not None:
            query, w = self.points
            w = (w if u is None else torch.baddbmm(w, u, query)) / mass
            found = torch.baddbmm(w.square().sum(-1, keepdim=True), w, query.transpose(1, 2), beta=-0.5)
            return found.sub_(self.halves)
        assert self.products is not None, "one of the two is there"
        (gram, products), squares = self.products, self.squares
        if u is not None:
            cross, products = products, torch.baddbmm(products, u, gram)  # [E, N, Q]
            squares = squares + (u * (cross + products)).sum(-1)
        return products / mass - (squares.unsqueeze(-1) / mass.square() / 2 + self.halves)


def gaussian_em(statistics: GaussianStatistics, prior_weights: Iterable, temperatures: Iterable,
                history: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Unroll len(prior_weights) steps of u = softmax_k((-|z - w_k|^2 / 2 + prior_weight v_k) / temperature),
    v_k = log(mean_i u_ik + 1e-6) + 1, w from u. The first step starts from the support means and has no prior.

    Returns the logits [E, N, Q] of the last step and its assignments (with `history` those of every step).
    """
    u: Tensor | None = None
    v: Tensor | float = 0.0
    visited: list[Tensor] = []
    for weight, temperature in zip(prior_weights, temperatures, strict=True):
        logits = statistics.scores(u).add_(weight * v)
        if isinstance(temperature, Tensor) or temperature != 1:
            logits = logits / temperature
        u = without_denormals(logits.softmax(1))
        v = (u.mean(-1, keepdim=True) + 1e-6).log() + 1  # [E, N, 1]
        visited = [*visited, u] if history else [u]
    return logits, visited


def without_denormals(p: Tensor) -> Tensor:
    """Probabilities p, overwritten where they carry no gradient, with 0 in place of those too small to matter beside any
    other: a product with denormal numbers takes up to a hundred times as long, and classes that lie far apart make many."""
    limits = torch.finfo(p.dtype)
    return torch.nn.functional.threshold(p, limits.tiny / limits.eps, 0, inplace=not p.requires_grad)


def centroids(sums: Tensor, counts: Tensor, query: Tensor, u: Tensor) -> Tensor:
    """w_k = (p_k + sum_i u_ki z_i) / (n_k + sum_i u_ki), [E, N, D]."""
    return torch.baddbmm(sums, u, query) / (counts + u.sum(-1)).unsqueeze(-1)


def dirichlet_log_density(alpha: Tensor, log_x: Tensor) -> Tensor:
    """log Dir(x_i | alpha_k) as [E, N, Q] for alpha [E, N, D] and log_x [E, Q, D]."""
    constant = torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)
    return torch.baddbmm(constant.unsqueeze(-1), alpha - 1, log_x.transpose(1, 2))


def simplex_features(episodes: Episodes, simplex: str, scale: Tensor | float = 30.0) -> tuple[Tensor, Tensor]:
    """Support [E, S, N] and query [E, Q, N] as points of the simplex over classes, in float64.

    simplex   "rows"        features are class probabilities already: kept, or sharpened to softmax(scale / 30 log x)
                            where `scale` is a learned tensor
              "text"        softmax(scale cos(z, text of the class)) from episodes.text
              "prototypes"  softmax(scale cos(z, support mean of the class)): an extension to purely visual features
              "cosines"     features are the cosines with the class texts: softmax(scale z)
              "auto"        rows where D == ways and the rows of the episode sum to one; else text if given, else
                            prototypes

    Double precision: Dirichlet parameters reach 1e4 and more, where lnGamma in float32 is off by whole logits.
    Raises FewshotError where the choice does not fit the episodes.
    """
    episodes = episodes.to(torch.float64)
    support, query, ways = episodes.support, episodes.query, episodes.ways
    fits = support.shape[-1] == ways
    if simplex == "auto":
        fallback = "prototypes" if episodes.text is None else "text"
        rows = _on_simplex(support) & _on_simplex(query) if fits else torch.zeros(len(episodes), dtype=torch.bool)
        if rows.all():
            return simplex_features(episodes, "rows", scale)
        other = simplex_features(episodes, fallback, scale)
        if not rows.any():
            return other
        kept = simplex_features(episodes, "rows", scale)
        support, query = (torch.where(rows[:, None, None], x, y) for x, y in zip(kept, other, strict=True))
        return support, query
    if simplex in ("rows", "cosines") and not fits:
        raise FewshotError(f"simplex={simplex!r} needs one feature per class; the features have D={support.shape[-1]} "
                           f"for ways={ways}: choose simplex='text' (with episodes.text) or 'prototypes'")
    if simplex == "rows":
        if isinstance(scale, Tensor):
            support, query = ((scale / 30 * x.clamp_min(1e-15).log()).softmax(-1) for x in (support, query))
        return support, query
    if simplex == "cosines":
        return (scale * support).softmax(-1), (scale * query).softmax(-1)
    if simplex == "text":
        if episodes.text is None or episodes.text.shape[-1] != support.shape[-1]:
            got = "none" if episodes.text is None else f"text of D={episodes.text.shape[-1]}"
            raise FewshotError(f"simplex='text' needs episodes.text [E, N, D={support.shape[-1]}], got {got}: pass the "
                               "class texts, or choose simplex='prototypes'")
        anchors = episodes.text
    else:
        anchors = prototypes(episodes)
    return (scale * cosine(support, anchors)).softmax(-1), (scale * cosine(query, anchors)).softmax(-1)


def _on_simplex(x: Tensor) -> Tensor:
    """[E] bool: all rows of the episode are probabilities (float32 and float16 rounding allowed for)."""
    return ((x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < 1e-3)).all(-1)


@dataclass(frozen=True, eq=False)
class DirichletFit:
    """logits [E, N, Q] of the last step, parameters alpha [E, N, D], met [E] (the last M-step reached its tolerance),
    visited parameters of every step where asked."""

    logits: Tensor
    alpha: Tensor
    met: Tensor
    visited: list[Tensor]


def dirichlet_em(support: Tensor | None, labels: Tensor | None, query: Tensor, prior_weights: Iterable,
                 temperatures: Iterable, *, hard: bool = False, steps: int = 1000, tolerance: float = 1e-11,
                 history: bool = False) -> DirichletFit:
    """Unroll EM for one Dirichlet per class on simplex rows support [E, S, N] (None: zero-shot) and query [E, Q, N].

    Starts from u = query and alpha = 1. A step: alpha by `dirichlet_mm` from the mean log features, v = log(mean u +
    1e-15) + 1, u = softmax((log density + prior_weight v) / temperature), one-hot of its arg max if `hard`. A class
    without any mass (only possible without support) keeps its parameters.
    """
    ways = query.shape[-1]
    log_query, u = (query + 1e-15).log(), query.transpose(1, 2)  # u [E, N, Q]
    sums: Tensor | float = 0.0
    counts: Tensor | float = 0.0
    if support is not None and labels is not None:
        y = one_hot(labels, ways, query.dtype).transpose(1, 2)  # [E, N, S]
        sums, counts = y @ (support + 1e-15).log(), y.sum(-1, keepdim=True)
    alpha, visited = torch.ones_like(query[:, :1]).expand(-1, ways, -1).contiguous(), []
    for weight, temperature in zip(prior_weights, temperatures, strict=True):
        mass = counts + u.sum(-1, keepdim=True)  # [E, N, 1]
        present = mass > 1e-15
        mean_log = torch.where(present, (sums + u @ log_query) / mass.clamp_min(1e-15), -10.0)
        fitted, met = dirichlet_mm(alpha, mean_log, steps, tolerance)
        alpha = torch.where(present, fitted, alpha)
        v = (u.mean(-1, keepdim=True) + 1e-15).log() + 1
        logits = (dirichlet_log_density(alpha, log_query) + weight * v) / temperature
        u = one_hot(best_class(logits), ways, query.dtype).transpose(1, 2) if hard else logits.softmax(1)
        if history:
            visited.append(alpha)
    return DirichletFit(logits, alpha, met, visited)
