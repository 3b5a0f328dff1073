"""Clustering of support and queries together, started from the class means: K-means, K-modes and their Laplacian forms.

Everything here depends on the points through their inner products alone. Centres are therefore kept as weights
[E, N, P] over the P points, and no step of the iteration touches the D feature dimensions. Of more points than that pays
for, the points themselves are kept, and the edges of their graph: no array has P^2 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice
from fewshot.core.errors import FewshotError
from fewshot.ops.class_reductions import best_class
from fewshot.ops.graphs import Neighbours, bound_updates, centred_gram, knn_affinity, nearest_others, squared_distances
from fewshot.ops.prototypes import one_hot

CENTRES = ("mean", "mode")


@dataclass(frozen=True)
class ClusteringOptions:
    """See `cluster`; the defaults are those of imtiazziko/SLK-few-shot except for `clamp_support`."""

    centres: str = "mean"
    laplacian_weight: float = 0.0
    neighbours: int = 2
    bandwidth: float | None = None
    clamp_support: bool = True
    max_iterations: int = 100
    tolerance: float = 1e-4
    bound_iterations: int = 600
    bound_tolerance: float = 1e-7
    mode_iterations: int = 1000
    mode_tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_choice(CENTRES, centres=self.centres)
        if self.laplacian_weight < 0:
            raise FewshotError(f"laplacian_weight={self.laplacian_weight}; give a number of at least 0 (0: no graph)")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise FewshotError(f"bandwidth={self.bandwidth}; give a positive length, or None to estimate it")
        check_at_least(1, max_iterations=self.max_iterations, neighbours=self.neighbours)


@dataclass(frozen=True, eq=False)
class Clustering:
    """scores [E, P, N] (argmax: cluster), weights [E, N, P] with centres = weights @ points, iterations [E],
    converged [E], history (if asked) of the weights after every iteration."""

    scores: Tensor
    weights: Tensor
    iterations: Tensor
    converged: Tensor
    history: list[Tensor] | None


@torch.no_grad()
def cluster(points: Tensor, support_labels: Tensor, ways: int, options: ClusteringOptions,
            history: bool = False) -> Clustering:
    """Cluster points [E, P, D] whose first S rows are the support with support_labels [E, S].

    Starts from nearest class means (support: its own class) and repeats: centres from the current clusters, then cost a
    and new assignment.
    centres           "mean": mean of the members, a = |x - c|^2 (K-means). "mode": mean-shift from the old centre over
                      the members, a = -exp(-|x - c|^2 / 2 s^2) (K-modes)
    laplacian_weight  0: hard assignment to the nearest centre, with scores -|x - c|^2 or -|x - c|^2 / 2 s^2. Above 0
                      (SLK): `bound_updates` on the graph of the `neighbours` nearest other points
    bandwidth         s; None estimates s^2 = sum_ij W_ij |x_i - x_j|^2 / 5P as the official code does (its 5 is a
                      constant: the graph has 2P edges)
    clamp_support     True: the support stays in its own classes. False, as in the official code: only at the start (and
                      in the start of the bound updates), afterwards support items may change cluster
    tolerance         an episode has converged when, from its third iteration on, its energy
                      sum a Y - laplacian_weight sum Y (WY) changes by at most this fraction

    Where support may move, a cluster can lose all members; the episode then ends with the previous state, as in the
    official code, and reports converged = False.
    """
    episodes, total, dtype = len(points), points.shape[1], points.dtype
    plain = options.centres == "mean" and not options.laplacian_weight
    inner = _Inner(points)
    truth = one_hot(support_labels, ways, dtype).transpose(1, 2)  # [E, N, S]
    shots = support_labels.shape[1]
    weights = torch.zeros(episodes, ways, total, dtype=dtype, device=points.device)
    weights[..., :shots] = truth / truth.sum(-1, keepdim=True)
    scores = _centre_distances(weights, inner).neg_()  # [E, N, P]
    members = _members(scores, truth, True)
    distances = None if inner.gram is None or plain else squared_distances(inner.gram)
    affinity = _affinity(inner, distances, options)
    spread = _twice_variance(inner, distances, affinity, options)  # [E, 1, 1]

    final_scores, final_weights = scores.clone(), weights.clone()
    iterations = torch.full((episodes,), options.max_iterations, device=points.device)
    converged = torch.zeros(episodes, dtype=torch.bool, device=points.device)
    alive, trace = torch.arange(episodes, device=points.device), []
    previous: Tensor | None = None
    for step in range(options.max_iterations):
        if options.centres == "mean":
            weights = members / members.sum(-1, keepdim=True)
            unary = _centre_distances(weights, inner)
            scores = -unary
        else:
            weights = _mean_shift(weights, members, inner, spread, options)
            scores = -_centre_distances(weights, inner) / spread
            unary = -scores.exp()
        soft = None
        if affinity is not None and options.laplacian_weight:
            found = bound_updates(unary.transpose(1, 2), affinity, options.laplacian_weight, options.bound_iterations,
                                  options.bound_tolerance, support_labels[alive], hold_labels=options.clamp_support)
            scores = found.scores.transpose(1, 2)
            soft = scores.softmax(dim=1)
        members = _members(scores, truth, options.clamp_support)
        energy = _energy(members if soft is None else soft, unary, affinity, options)

        emptied = (members.sum(-1) == 0).any(-1)
        settled = torch.zeros_like(emptied)
        if previous is not None and step > 1:
            settled = ((energy - previous).abs() <= options.tolerance * previous.abs()) & ~emptied
        kept = alive[~emptied]
        final_scores[kept], final_weights[kept] = scores[~emptied], weights[~emptied]
        if history:
            trace.append(final_weights.clone())
        done = emptied | settled
        previous = energy
        if done.any():
            iterations[alive[done]], converged[alive[settled]] = step + 1, True
            keep = ~done
            alive, weights, members, truth, spread, previous = (
                x[keep] for x in (alive, weights, members, truth, spread, previous))
            inner = inner[keep]
            affinity = None if affinity is None else affinity[keep]
            if not len(alive):
                break
    return Clustering(final_scores.transpose(1, 2), final_weights, iterations, converged, trace if history else None)


class _Inner:
    """Inner products of centred points [E, P, D]: gram [E, P, P], or None where they are computed as they are needed."""

    def __init__(self, points: Tensor):
        by_pairs = points.shape[1] <= 2 * points.shape[2]
        self.gram = centred_gram(points) if by_pairs else None
        self.points = points[:0] if by_pairs else points - points.mean(dim=1, keepdim=True)

    @property
    def squares(self) -> Tensor:
        """|x_i|^2 [E, P]."""
        return self.points.square().sum(-1) if self.gram is None else self.gram.diagonal(dim1=-2, dim2=-1)

    def with_centres(self, weights: Tensor) -> Tensor:
        """c_k . x_i [E, N, P] of centres c = weights @ x."""
        return (weights @ self.points) @ self.points.transpose(1, 2) if self.gram is None else weights @ self.gram

    def __getitem__(self, keep: Tensor) -> _Inner:
        found = object.__new__(_Inner)
        found.gram = None if self.gram is None else self.gram[keep]
        found.points = self.points[keep] if self.gram is None else self.points
        return found


def _centre_distances(weights: Tensor, inner: _Inner) -> Tensor:
    """|x_i - c_k|^2 as [E, N, P] for centres c = weights @ x."""
    products = inner.with_centres(weights)
    squares = (products * weights).sum(-1, keepdim=True)  # |c_k|^2
    return (inner.squares.unsqueeze(1) + squares).sub_(products, alpha=2).clamp_min_(0)


def _members(scores: Tensor, truth: Tensor, clamp: bool) -> Tensor:
    """Hard assignment [E, N, P], one-hot over N."""
    classes = torch.arange(scores.shape[1], device=scores.device).unsqueeze(1)
    members = (best_class(scores).unsqueeze(1) == classes).to(scores.dtype)
    if clamp:
        members[..., :truth.shape[-1]] = truth
    return members


def _affinity(inner: _Inner, distances: Tensor | None, options: ClusteringOptions) -> Tensor | Neighbours | None:
    if not options.laplacian_weight and (options.centres == "mean" or options.bandwidth is not None):
        return None
    if distances is not None:
        return knn_affinity(distances, options.neighbours)
    return Neighbours(nearest_others(inner.points, options.neighbours), symmetric=False)


def _twice_variance(inner: _Inner, distances: Tensor | None, affinity: Tensor | Neighbours | None,
                    options: ClusteringOptions) -> Tensor:
    """2 s^2 [E, 1, 1] of the Gaussian kernel, positive also where points coincide with all their neighbours."""
    squares = inner.squares
    if affinity is None or options.centres == "mean" or options.bandwidth is not None:
        return squares.new_full((len(squares), 1, 1), 2 * (options.bandwidth or 1.0) ** 2)
    if isinstance(affinity, Neighbours):
        along = affinity.squared_lengths(inner.points).sum((1, 2))
    else:
        assert distances is not None, "made for a graph of all pairs"
        along = (affinity * distances).sum((1, 2))
    variance = along / (5 * squares.shape[1])
    limits = torch.finfo(squares.dtype)
    # The mean squared distance of centred points is twice their mean square.
    return (2 * variance).maximum(limits.eps * 2 * squares.mean(1) + limits.tiny).view(-1, 1, 1)


def _mean_shift(weights: Tensor, members: Tensor, inner: _Inner, spread: Tensor, options: ClusteringOptions) -> Tensor:
    """Follow each centre uphill in the kernel density of its members: c <- sum_j k(x_j, c) x_j / sum_j k(x_j, c).

    An episode stops when none of its centres moves by more than mode_tolerance times the root mean square distance of
    the points from their mean. (The official code compares the largest coordinate of the step with that of the centre,
    which depends on the axes, and stops each centre alone.)
    """
    found = weights.clone()
    alive = torch.arange(len(weights), device=weights.device)
    squares = inner.squares.unsqueeze(1)
    limit = options.mode_tolerance**2 * squares.mean(-1)  # [E, 1]
    outside = members == 0
    products = inner.with_centres(weights)
    for _ in range(options.mode_iterations):
        # -|x_j - c|^2 without |c|^2, which is the same for all members of a centre. The difference comes before the
        # division: where points nearly coincide, both of its terms are many times larger after it.
        nearness = (2 * products).sub_(squares).div_(spread)
        shifted = nearness.masked_fill_(outside, -torch.inf).softmax(dim=-1)
        shifted_products = inner.with_centres(shifted)
        step = (weights - shifted).mul_(products.sub_(shifted_products)).sum(-1)  # squared length [E, N]
        weights, products = shifted, shifted_products
        done = (step <= limit).all(-1)
        if done.any():
            found[alive[done]] = weights[done]
            keep = ~done
            alive, weights, products, squares, spread, outside, limit = (
                x[keep] for x in (alive, weights, products, squares, spread, outside, limit))
            inner = inner[keep]
            if not len(alive):
                break
    found[alive] = weights
    return found


def _energy(assignment: Tensor, unary: Tensor, affinity: Tensor | Neighbours | None, options: ClusteringOptions) -> Tensor:
    cost = assignment * unary
    if affinity is not None and options.laplacian_weight:
        pull = affinity.pull(assignment) if isinstance(affinity, Neighbours) else assignment @ affinity.transpose(1, 2)
        cost -= pull.mul_(assignment).mul_(options.laplacian_weight)
    return cost.sum((1, 2), dtype=torch.float64)
