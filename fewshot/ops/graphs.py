"""Nearest-neighbour graphs over the points of an episode, and assignments smoothed along them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.ops.distances import near_origin, squared_euclidean
from fewshot.ops.prototypes import one_hot

# exp of it is 0 in every floating type, while 0 * it stays 0 where 0 * inf would be NaN.
_NEVER = -1e4
_MANY = 4096  # points of an episode from which on a graph is kept by its edges
_BLOCK = 256  # points whose distances to all others are looked at together


def squared_distances(gram: Tensor) -> Tensor:
    """|x_i - x_j|^2 [E, P, P] from the inner products x_i.x_j [E, P, P], never negative."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    return torch.add(squares.unsqueeze(-1) + squares.unsqueeze(-2), gram, alpha=-2).clamp_min_(0)


def centred_gram(x: Tensor) -> Tensor:
    """Inner products [E, P, P] of x [E, P, D] after subtracting the mean of the P points.

    Distances do not change, but far from the origin the expansion |x|^2 - 2xy + |y|^2 would lose digits.
    """
    x = x - x.mean(dim=1, keepdim=True)
    return x @ x.transpose(-1, -2)


def distances_to_centres_and_each_other(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """|x_i - c_k|^2 [E, P, N] and |x_i - x_j|^2 [E, P, P] for x [E, P, D] and centres [E, N, D], sharing the norms of x."""
    x, centres = near_origin(x, centres)
    gram = x @ x.transpose(-1, -2)
    squares = centres.square().sum(-1, keepdim=True) + gram.diagonal(dim1=-2, dim2=-1).unsqueeze(1)  # [E, N, P]
    to_centres = torch.baddbmm(squares, centres, x.transpose(-1, -2), alpha=-2).clamp_min_(0)
    return to_centres.transpose(1, 2), squared_distances(gram)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The graph of `knn_affinity` by the neighbours [E, P, k] of every point, for episodes of so many points that P^2
    numbers are too many."""

    nearest: Tensor
    symmetric: bool

    def __getitem__(self, keep: Tensor) -> Neighbours:
        return Neighbours(self.nearest[keep], self.symmetric)

    def squared_lengths(self, x: Tensor) -> Tensor:
        """|x_i - x_j|^2 [E, P, k] of the points x [E, P, D] and their neighbours."""
        episodes = torch.arange(len(x), device=x.device).view(-1, 1)
        return torch.stack([(x - x[episodes, nearest]).square().sum(-1) for nearest in self.nearest.unbind(-1)], -1)

    def pull(self, y: Tensor) -> Tensor:
        """y W^T [E, N, P] of y [E, N, P]."""
        pulled, links = torch.zeros_like(y), torch.zeros_like(y[:, :1])
        for nearest in self.nearest.unbind(-1):
            nearest = nearest.unsqueeze(1)  # [E, 1, P]
            pulled += y.gather(2, nearest.expand_as(y))
            if self.symmetric:
                pulled.scatter_add_(2, nearest.expand_as(y), y)
                links += 1
                links.scatter_add_(2, nearest, torch.ones_like(links))
        return pulled.addcmul_(y, links).div_(2) if self.symmetric else pulled


def costs_and_graph(x: Tensor, centres: Tensor, neighbours: int, symmetric: bool) -> tuple[Tensor, Tensor | Neighbours]:
    """|x_i - c_k|^2 [E, P, N] for x [E, P, D] and centres [E, N, D], and the graph of the points x, see `knn_affinity`."""
    if x.shape[1] <= _MANY:
        unary, apart = distances_to_centres_and_each_other(x, centres)
        return unary, knn_affinity(apart, neighbours, symmetric)
    x, centres = near_origin(x, centres)
    unary = squared_euclidean(x, centres)
    return unary, Neighbours(nearest_others(x, neighbours), symmetric)


def nearest_others(x: Tensor, neighbours: int) -> Tensor:
    """Positions [E, P, k] of the nearest other points of each of x [E, P, D], of equally near ones the first; all others
    where there are fewer than k = `neighbours`. x is near the origin (`near_origin`, or centred)."""
    _checked(neighbours)
    neighbours = min(neighbours, x.shape[1] - 1)
    found = torch.empty(*x.shape[:2], neighbours, dtype=torch.int64, device=x.device)
    squares, across = x.square().sum(-1).unsqueeze(1), x.transpose(1, 2)  # [E, 1, P], [E, D, P]
    for start in range(0, x.shape[1], _BLOCK):
        rows = x[:, start : start + _BLOCK]
        apart = torch.baddbmm(squares, rows, across, alpha=-2)  # without |x_i|^2, which is the same for all others
        apart.diagonal(start, 1, 2).fill_(torch.inf)
        for place in range(neighbours):
            nearest = apart.argmin(-1, keepdim=True)
            found[:, start : start + rows.shape[1], place] = nearest.squeeze(-1)
            apart.scatter_(2, nearest, torch.inf)
    return found


def knn_affinity(squared: Tensor, neighbours: int, symmetric: bool = False) -> Tensor:
    """Affinities W [E, P, P] from squared distances [E, P, P]: W_ij = 1 if j is one of the `neighbours` nearest *other*
    points of i, else 0. Fewer than `neighbours` other points: all of them.

    A point is excluded from its own neighbours by its index, not as the nearest one, so duplicates are each other's
    neighbours. Among exactly equal distances the lower index wins.

    symmetric   False: directed, rows sum to `neighbours`, as in the code of LaplacianShot and SLK.
                True: (W + W^T)/2 with its row sums added on the diagonal. This is diagonally dominant, hence positive
                semi-definite, the case for which the bound updates provably never increase their energy.
    """
    _checked(neighbours)
    infinity = torch.finfo(squared.dtype).max
    squared = squared.clone()
    squared.diagonal(dim1=-2, dim2=-1).fill_(infinity)
    affinity = torch.zeros_like(squared)
    # Repeated minima instead of topk: several times faster for the two or three neighbours in use.
    for _ in range(min(neighbours, squared.shape[-1] - 1)):
        nearest = _smallest(squared).to(squared.dtype)
        affinity += nearest
        squared.add_(nearest, alpha=infinity)
    if symmetric:
        affinity = (affinity + affinity.transpose(-1, -2)) / 2
        affinity.diagonal(dim1=-2, dim2=-1).add_(affinity.sum(-1))
    return affinity


def _checked(neighbours: int) -> None:
    if neighbours < 1:
        raise FewshotError(f"neighbours={neighbours}; a graph needs at least 1 other point per point")


def _smallest(values: Tensor) -> Tensor:
    """Mask of the smallest number along the last axis, of several equal ones the first."""
    mask = values == values.amin(-1, keepdim=True)
    if int(mask.count_nonzero()) == mask[..., 0].numel():
        return mask
    # Only for ties: argmin is not vectorised, and takes longer than all of the above.
    return torch.zeros_like(mask).scatter_(-1, values.argmin(dim=-1, keepdim=True), True)


class BoundUpdates(NamedTuple):
    """scores [E, P, N] whose softmax over N is the final assignment Y, iterations [E] and converged [E]."""

    scores: Tensor
    iterations: Tensor
    converged: Tensor


@torch.no_grad()
def bound_updates(unary: Tensor, affinity: Tensor | Neighbours, weight: float, max_iterations: int = 20,
                  tolerance: float = 1e-6, labels: Tensor | None = None, hold_labels: bool = True) -> BoundUpdates:
    """Minimise E(Y) = sum_ik Y_ik (log Y_ik + a_ik - weight (WY)_ik) over assignments Y by the updates
    Y <- softmax(-a + weight W Y) (LaplacianShot, Algorithm 1), starting from softmax(-a).

    unary      a [E, P, N], cost of putting point i into class k
    affinity   W [E, P, P], or by its edges
    labels     [E, L] classes of the first L points; the start has them one-hot, and with `hold_labels` every update too

    An episode stops when from its third update on |change of E| <= tolerance |E| (a test on its own energy only, summed
    in float64), or after `max_iterations`; then `converged` is False.
    """
    if max_iterations < 1:
        raise FewshotError(f"max_iterations={max_iterations}; at least 1 update is needed")
    alive = torch.arange(len(unary), device=unary.device)
    scores = torch.empty_like(unary)
    iterations = torch.full((len(unary),), max_iterations, device=unary.device)
    converged = torch.zeros(len(unary), dtype=torch.bool, device=unary.device)
    # Classes before points [E, N, P]: a softmax over a short last axis is many times slower.
    unary = unary.transpose(1, 2).contiguous()
    graph = affinity if isinstance(affinity, Neighbours) else affinity.transpose(1, 2) * weight

    def pulled(y: Tensor) -> Tensor:
        return graph.pull(y).mul_(weight) if isinstance(graph, Neighbours) else y @ graph

    pinned = None if labels is None else _pinned(labels, unary)
    update = -unary  # [E, N, P]
    if pinned is not None:
        update[..., :pinned.shape[-1]] = pinned
    pull = pulled(update.softmax(dim=1))
    previous: Tensor | None = None
    for step in range(max_iterations):
        update = pull - unary
        if pinned is not None and hold_labels:
            update[..., :pinned.shape[-1]] = pinned
        log_y = update.log_softmax(dim=1)
        y = log_y.exp()
        pull = pulled(y)
        energy = (log_y.add_(unary).sub_(pull).mul_(y)).sum((1, 2), dtype=torch.float64)
        if previous is not None and step > 1:
            done = (energy - previous).abs() <= tolerance * previous.abs()
            if done.any():
                finished, keep = alive[done], ~done
                scores[finished] = update[done].transpose(1, 2)
                iterations[finished], converged[finished] = step + 1, True
                alive, update, unary, pull, energy = (x[keep] for x in (alive, update, unary, pull, energy))
                graph = graph[keep]
                pinned = None if pinned is None else pinned[keep]
                if not len(alive):
                    break
        previous = energy
    scores[alive] = update.transpose(1, 2)
    return BoundUpdates(scores, iterations, converged)


def _pinned(labels: Tensor, like: Tensor) -> Tensor:
    """Scores [E, N, L] whose softmax over N is exactly one-hot."""
    return (1 - one_hot(labels, like.shape[1], like.dtype).transpose(1, 2)) * _NEVER
