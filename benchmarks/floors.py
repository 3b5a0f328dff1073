"""What an episode must cost at least: the bytes it gathers, the matrix products of its method, its exponentials.

One short function per method, from the shape of an episode and the number of iterations it took to a `Work`. A product
(rows, inner, columns, dtype, times) is timed as a batched product of that very shape, with its operands in the cache
(`Rates`), so that a floor holds for this machine and for shapes as thin as the method needs.

Left out: normalisation, sums, softmax apart from its exponentials, searches (nearest neighbours, arg max), copies, and all
calls of operators. Counted separately: exponentials and logarithms (`exps`, in float64 `exps64`), and the digamma and
lgamma functions of Dirichlet mixtures (`special64`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from common import seconds_of

F32, F64 = torch.float32, torch.float64


@dataclass(frozen=True)
class Shape:
    """Of one episode: ways N, support items S, queries Q, features D."""

    N: int
    S: int
    Q: int
    D: int

    @property
    def P(self) -> int:
        return self.S + self.Q

    @property
    def R(self) -> int:
        """Dimensions of the span of the points."""
        return min(self.P, self.D)


@dataclass(frozen=True)
class Work:
    """Of one episode, beside gathering it. `passes`: times that all features are read and written again."""

    products: list = field(default_factory=list)
    exps: float = 0
    exps64: float = 0
    special64: float = 0
    passes: float = 0


def span(s: Shape) -> list:
    """Gram matrix of the points in float64 and its Cholesky factor, P^3 / 3 operations: a sixth of a product."""
    return [(s.P, s.D, s.P, F64, 1), (s.P, s.P, s.P, F64, 1 / 6)] if s.D > s.P else []


def protonet(s: Shape, steps: float) -> Work:
    """Queries times prototypes; the sum over the support is one addition per feature."""
    return Work([(s.N, s.D, s.Q, F32, 1)])


def matching_net(s: Shape, steps: float) -> Work:
    """Queries times support items, and a softmax over them."""
    return Work([(s.S, s.D, s.Q, F32, 1)], exps=s.S * s.Q)


def nearest_neighbour(s: Shape, steps: float) -> Work:
    return Work([(s.S, s.D, s.Q, F32, 1)])


def dn4(s: Shape, steps: float) -> Work:
    """Descriptors of 64 channels, D / 64 of each item: those of the queries times those of the support."""
    positions = s.D // 64
    return Work([(s.Q * positions, 64, s.S * positions, F32, 1)])


def ridge(s: Shape, steps: float) -> Work:
    """Gram matrix of the support, weights from the dual ones, queries times weights."""
    return Work([(s.S, s.D, s.S, F32, 1), (s.N, s.S, s.D, F32, 1), (s.N, s.D, s.Q, F32, 1)])


def logistic_regression(s: Shape, steps: float) -> Work:
    """Gram matrix of the support in float64, and queries times weights; a Newton step has a gradient and at least one
    conjugate-gradient step: four products of coordinates [S, S] and classes."""
    return Work([(s.S, s.D, s.S, F64, 1), (s.N, s.S, s.D, F32, 1), (s.N, s.D, s.Q, F32, 1),
                 (s.N, s.S, s.S, F32, 4 * steps)], exps=2 * steps * s.N * s.S)


def free_lunch(s: Shape, steps: float) -> Work:
    """Logistic regression on 750 drawn items per class: their Gram matrix over the features and its Cholesky inverse (half a
    product), four products of items and classes per Newton step as above."""
    items, width = 750 * s.N + s.S, min(750 * s.N + s.S, s.D)
    return Work([(width, items, width, F32, 1), (width, width, width, F32, 1 / 2), (s.N, width, items, F32, 4 * steps),
                 (s.N, s.D, s.Q, F32, 1)], exps=2 * steps * s.N * items)


def bd_cspn(s: Shape, steps: float) -> Work:
    """Similarities to the class means, weighted means, and queries times the new prototypes."""
    return Work([(s.N, s.D, s.P, F32, 1), (s.N, s.P, s.D, F32, 1), (s.N, s.D, s.Q, F32, 1)], exps=s.N * s.P)


def laplacian_shot(s: Shape, steps: float) -> Work:
    """As BD-CSPN, the Gram matrix of the queries, and one product with their graph per update (softmax and log)."""
    return Work([*bd_cspn(s, 0).products, (s.Q, s.D, s.Q, F32, 1), (s.N, s.Q, s.Q, F32, steps)],
                exps=(2 * steps + 1) * s.N * s.Q)


def kmeans(s: Shape, steps: float) -> Work:
    """Gram matrix of the points, one product of weights with it per iteration, the final centres."""
    return Work([(s.P, s.D, s.P, F32, 1), (s.N, s.P, s.P, F32, steps), (s.N, s.P, s.D, F32, 1)])


def slk(s: Shape, steps: float) -> Work:
    """As k-means; the bound updates (six an iteration, counted once on these features: 5 to 10), have a product with the
    graph, a log-softmax and an exponential each."""
    return Work([*kmeans(s, steps).products, (s.N, s.P, s.P, F32, 6 * steps)], exps=12 * steps * s.N * s.P)


def soft_kmeans(s: Shape, steps: float) -> Work:
    """Reduced to the span; means and scores per iteration; final means and logits in the full space."""
    return Work([*span(s), (s.N, s.Q, s.R, F32, steps), (s.N, s.R, s.Q, F32, steps), (s.N, s.P, s.D, F32, 1),
                 (s.N, s.D, s.Q, F32, 1)], exps=steps * s.N * s.Q)


def pt_map(s: Shape, steps: float) -> Work:
    """Reduced to the span; costs and new means per iteration; a transport plan each, of two Newton steps (counted once: 1.7
    to 2.1) with a softmax and a Hessian, and one more softmax that finds it converged."""
    plans = steps + 1
    return Work([*span(s), (s.N, s.R, s.Q, F32, plans), (s.N, s.Q, s.R, F32, steps), (s.N, s.Q, s.N, F64, 2 * plans)],
                exps64=3 * plans * s.N * s.Q)


def opta(s: Shape, steps: float) -> Work:
    """Reduced to the span; costs and new means per pass, a transport plan of three Newton steps each (counted once: 3.1 to
    4.2); logits of the linear head."""
    return Work([*span(s), (s.N, s.R, s.Q, F32, steps + 1), (s.N, s.Q, s.R, F32, steps), (s.N, s.Q, s.N, F64, 3 * steps)],
                exps64=4 * steps * s.N * s.Q)


def tim_gd(s: Shape, steps: float) -> Work:
    """Scores and gradient per step in the full space (Adam depends on the axes); softmax and one entropy."""
    return Work([(s.N, s.D, s.P, F32, steps), (s.N, s.P, s.D, F32, steps)], exps=steps * s.N * (s.P + s.Q))


def alpha_tim(s: Shape, steps: float) -> Work:
    """As TIM-GD; Tsallis' entropy takes a logarithm and an exponential."""
    return Work(tim_gd(s, steps).products, exps=steps * s.N * (s.P + 2 * s.Q))


def tim_adm(s: Shape, steps: float) -> Work:
    """Reduced to the span and in float64 throughout; a power is a logarithm and an exponential."""
    return Work([*span(s), (s.N, s.R, s.P, F64, steps), (s.N, s.P, s.R, F64, steps)],
                exps64=steps * s.N * (s.P + 2 * s.Q))


def gaussian_mixture(s: Shape, steps: float) -> Work:
    """PADDLE and UNEM: Gram matrix of the queries, one product with it per step, the final centroids."""
    return Work([(s.Q, s.D, s.Q, F32, 1), (s.N, s.D, s.Q, F32, 1), (s.N, s.Q, s.Q, F32, steps), (s.N, s.Q, s.D, F32, 1)],
                exps=steps * s.N * s.Q)


def dirichlet_mixture(s: Shape, steps: float) -> Work:
    """Cosines with the class means in float64; `steps` are the iterations of all M-steps that were computed (most of the
    published 1000 are extrapolated), with two special functions for each of the N x N parameters and one for each class."""
    return Work([(s.N, s.D, s.P, F64, 1)], exps64=s.N * s.P, special64=steps * (2 * s.N + 1) * s.N)


def hct_adapt(s: Shape, steps: float) -> Work:
    """Every iteration normalises all points again, then scores the queries and moves the means."""
    return Work([(s.N, s.D, s.Q, F32, steps + 1), (s.N, s.P, s.D, F32, steps)], exps=steps * s.N * s.Q, passes=steps)


def putm(s: Shape, steps: float) -> Work:
    """Principal axes (9 P^3 operations), then 30 training steps per round and 30 more of a network with layers of 128, 64
    and 1 on all Q x N differences, in float64."""
    train, pairs = 30 * (steps + 1), s.Q * s.N
    return Work([(s.R, s.D, s.R, F64, 1), (s.P, s.P, s.P, F64, 4.5), (pairs, s.R, 128, F64, train),
                 (128, pairs, s.R, F64, train), (pairs, 128, 64, F64, 2 * train), (128, pairs, 64, F64, train)],
                exps64=2 * train * pairs)


FLOORS: dict[str, Callable[[Shape, float], Work]] = {
    "protonet": protonet, "simple_shot": protonet, "matching_net": matching_net, "nearest_neighbour": nearest_neighbour,
    "dn4": dn4, "ridge": ridge, "free_lunch": free_lunch, "logistic_regression": logistic_regression, "bd_cspn": bd_cspn,
    "laplacian_shot": laplacian_shot, "kmeans": kmeans, "slk_means": slk, "slk_ms": slk, "soft_kmeans": soft_kmeans,
    "easy_transductive": soft_kmeans, "pt_map": pt_map, "opta": opta, "tim_gd": tim_gd, "alpha_tim": alpha_tim,
    "tim_adm": tim_adm, "paddle": gaussian_mixture, "unem_gaussian": gaussian_mixture,
    "em_dirichlet": dirichlet_mixture,
    "hard_em_dirichlet": dirichlet_mixture, "unem_dirichlet": dirichlet_mixture, "hct_adapt": hct_adapt, "putm": putm}


class Rates:
    """Measured speeds of this machine; a product is timed once per shape."""

    def __init__(self, bandwidth: float):
        """bandwidth   bytes gathered per second"""
        self.bandwidth, self._products = bandwidth, {}
        small, wide = torch.rand(1 << 14), torch.rand(1 << 14, dtype=F64)
        self.exp = len(small) / seconds_of(lambda: torch.exp(small))
        self.exp64 = len(wide) / seconds_of(lambda: torch.exp(wide))
        self.special64 = 2 * len(wide) / seconds_of(lambda: (torch.lgamma(wide), torch.digamma(wide)))

    def product(self, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
        """Seconds of one product of a batch whose operands fit the second-level cache, in the faster order."""
        key = rows, inner, columns, dtype
        if key not in self._products:
            batch = max(1, min(64, (1 << 20) // (dtype.itemsize * (rows + columns) * inner)))
            x, y = (torch.rand(batch, n, inner, dtype=dtype) for n in (rows, columns))
            orders = (lambda: x @ y.transpose(1, 2)), (lambda: y @ x.transpose(1, 2))
            self._products[key] = min(seconds_of(order, least=0.01) for order in orders) / batch
        return self._products[key]

    def floor(self, name: str, shape: Shape, steps: float) -> tuple[float, float]:
        """Seconds of an episode: (gather and products, exponentials and special functions); 0 for a method not listed."""
        if name not in FLOORS:
            return 0.0, 0.0
        work = FLOORS[name](shape, steps)
        bytes_moved = 4 * shape.P * shape.D * (1 + work.passes)
        products = sum(times * self.product(*key) for *key, times in work.products)
        elementwise = work.exps / self.exp + work.exps64 / self.exp64 + work.special64 / self.special64
        return bytes_moved / self.bandwidth + products, elementwise
