"""LFA: a linear map of the features onto the texts of their classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_number, check_positive
from fewshot.core.seeding import derived_seed
from fewshot.episodes.types import Episodes
from fewshot.methods.bases.grid import GridMethod, linear
from fewshot.methods.contract import METHODS
from fewshot.ops.adam import Adam, cosine_rate
from fewshot.ops.distances import before_unit, l2_normalise, nonzero
from fewshot.ops.prototypes import class_sums
from fewshot.ops.text import logit_scale, unit_texts

_LAST_RATE = 1e-7  # of the official cosine
_MARGIN_SCALE = 4.0


@dataclass(frozen=True, eq=False)
class _Moved:
    """Queries x as x + weight y: cosines with the texts of x and products of y with them [E, N, Q], x.y and |y|^2 [E, 1, Q].

    scale, bias   of the logits
    """

    cosines: Tensor
    products: Tensor
    along: Tensor
    squares: Tensor
    scale: float
    bias: float

    def logits(self, weight: float) -> Tensor:
        square = 1 + weight * (2 * self.along + weight * self.squares)
        cosines = torch.add(self.cosines, self.products, alpha=weight) / nonzero(square.clamp_min(0).sqrt())
        return self.scale * cosines + self.bias


@METHODS.register("lfa")
@dataclass(frozen=True)
class LFA(GridMethod):
    """Cosines of mapped features with the texts, by a map W [D, D] that is learned on the support:

        logits_n = text_scale (scale cos(W' q, w_n) + bias),
        W = beta I + (1 - beta) R,   R the rotation with the least sum_i |R' x_i - w_(y_i)|^2  (Procrustes),

    then refined by AdamW on the adaptive re-ranking loss of the support: with z = W' x_i, brought to unit length, the mean
    over the k texts n nearest to it of

        max(0, |z - w_y| + (1 - w_n w_y) / 4 - |z - w_n|).

    beta            1 is `zero_shot` (without steps). 0.85 is the default of the official function; the program
                    searches 25 values from 0 to 1, on splits of the support
    steps           of the refinement, which moves D^2 numbers for each episode; 0 leaves W as it starts
    learning_rate   falls along a cosine to 1e-7;  weight_decay: of AdamW, towards 0
    neighbours      k; the class itself counts among them, with a loss of 0
    batch           share of the support in each step
    noise, dropout  standard deviation of what is added to the features, and share of channels set to 0; each is done
                    with probability 1/2 in a step
    seed            of these draws, which are given to the items in the order of the sums of their features: the order
                    of the support does not matter, nor do other episodes
    text_scale      multiplies the logits; predictions do not change. Not 0: all that is said here is said by the texts

    R is not determined where N < D: here it is, of all solutions, the one nearest to the identity, which moves nothing
    outside of the span of class means and texts. It is found there, in at most 2 N dimensions. The program takes whichever
    its SVD returns, which changes no prediction without steps, as it only changes the length of W' q.

    Deviations: the official logits are cosines, as if the model had a scale of 1. Five crops of each image are items of the
    support. New classes (`transfer`) are seen through the same W, not through a running mean of it. Refined logits carry no
    gradient.
    """

    paper = "Ouali et al. 2023 (LFA), arXiv:2304.01752; saic-fi/LFA"
    needs_text = True
    searched_grid = {"beta": linear(0, 1, 25)}

    beta: float = 0.85
    steps: int = 200
    learning_rate: float = 5e-4
    weight_decay: float = 5e-4
    neighbours: int = 3
    batch: float = 0.75
    noise: float = 0.035
    dropout: float = 0.05
    seed: int = 0
    text_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0, 1)
        check_number("batch", self.batch, 0, 1, low_allowed=False)
        check_number("dropout", self.dropout, 0, 1, high_allowed=False)
        check_at_least(0, steps=self.steps, weight_decay=self.weight_decay, noise=self.noise, seed=self.seed)
        check_positive(learning_rate=self.learning_rate, neighbours=self.neighbours)
        check_number("text_scale", self.text_scale, 0, low_allowed=False)

    @property
    def reused(self) -> tuple[str, ...]:
        return () if self.steps else ("beta",)

    @property
    def works_on_support(self) -> bool:
        return True  # two decompositions, and refinement

    def shared(self, episodes: Episodes) -> _Moved:
        return self._moved(episodes, l2_normalise(episodes.query), unit_texts(episodes))

    def transfer(self, episodes: Episodes, query: Tensor, text: Tensor) -> Tensor:
        """By the map of the support, which moves features of other classes, too."""
        return self.combined(self.parts(self._moved(episodes, l2_normalise(query), l2_normalise(text.to(query.dtype)))))

    def _moved(self, episodes: Episodes, query: Tensor, texts: Tensor) -> _Moved:
        """Unit vectors query [E, Q, D] by the map of the support of `episodes`, beside unit vectors texts [E, M, D]."""
        basis, turn = rotation(episodes)
        if self.steps:
            moved = query @ self._refined(episodes, basis, turn) - query
            products = moved @ texts.transpose(1, 2)
            along, squares = (query * moved).sum(-1), moved.square().sum(-1)
        else:
            inside = query @ basis
            moved = inside @ turn
            products = moved @ (texts @ basis).transpose(1, 2)
            along, squares = (inside * moved).sum(-1), moved.square().sum(-1)
        return _Moved((query @ texts.transpose(1, 2)).transpose(1, 2), products.transpose(1, 2), along.unsqueeze(1),
                      squares.unsqueeze(1), self.text_scale * logit_scale(episodes), self.text_scale * episodes.logit_bias)

    def parts(self, shared: _Moved) -> tuple[Tensor]:
        return (shared.logits(1.0 if self.steps else 1 - self.beta),)

    @torch.no_grad()
    def _refined(self, episodes: Episodes, basis: Tensor, turn: Tensor) -> Tensor:
        """W [E, D, D]."""
        texts, dim = unit_texts(episodes), basis.shape[1]
        order = episodes.support.sum(-1).argsort(1)
        support = l2_normalise(episodes.support).take_along_dim(order.unsqueeze(-1), 1)
        labels = episodes.support_labels.gather(1, order)
        identity = torch.eye(dim, dtype=basis.dtype, device=basis.device)
        found = identity + (1 - self.beta) * (basis @ turn @ basis.transpose(1, 2))
        adam = Adam([found], self.learning_rate, weight_decay=self.weight_decay)
        for step in range(self.steps):
            adam.learning_rate = _LAST_RATE + cosine_rate(self.learning_rate - _LAST_RATE, step, self.steps)
            rows, points = self._drawn(support, step)
            at_points = reranking_gradient(points @ found, texts, labels[:, rows], self.neighbours)
            adam.step([points.transpose(1, 2) @ at_points])
        return found

    def _drawn(self, support: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(rows [B] of the support [E, S, D], their features with noise and dropout [E, B, D])."""
        generator = torch.Generator().manual_seed(derived_seed("lfa", self.seed, step))
        items, dim = support.shape[1:]
        rows = torch.randperm(items, generator=generator)[: max(1, int(items * self.batch))]
        with_noise, with_dropout = (torch.rand(2, generator=generator) > 0.5).tolist()
        shape, points = (len(rows), dim), support[:, rows.to(support.device)]
        if with_noise and self.noise:
            points = points + self.noise * torch.randn(shape, generator=generator, dtype=torch.float64).to(points)
        if with_dropout and self.dropout:
            kept = torch.rand(shape, generator=generator, dtype=torch.float64) >= self.dropout
            points = points * (kept / (1 - self.dropout)).to(points)
        return rows.to(support.device), points


@torch.no_grad()
def rotation(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """(basis [E, D, M] of orthonormal columns, turn [E, M, M]): the rotation is I + basis turn basis', for rows x -> x R.

    Of all solutions R the one nearest to the identity. M is the smaller of D and 2 N. Gradients do not pass.
    """
    support, texts = l2_normalise(episodes.support).double(), unit_texts(episodes).double()
    sums = class_sums(support, episodes.support_labels, episodes.ways)[0]
    dim, ways = texts.shape[-1], episodes.ways
    if dim <= 2 * ways:
        basis = torch.eye(dim, dtype=texts.dtype, device=texts.device).expand(len(texts), dim, dim)
    else:
        basis = torch.linalg.qr(torch.cat([sums, texts], 1).transpose(1, 2)).Q
    left, _, right = torch.linalg.svd((sums @ basis).transpose(1, 2) @ (texts @ basis))
    rank = min(ways, basis.shape[-1])
    turned = left[..., :rank] @ right[:, :rank]
    if rank < basis.shape[-1]:  # of the directions that the data leave free, each goes to the nearest one
        free, target = left[..., rank:], right[:, rank:]
        first, _, second = torch.linalg.svd(free.transpose(1, 2) @ target.transpose(1, 2))
        turned = turned + free @ first @ second @ target
    turn = turned - torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    return basis.to(episodes.support.dtype), turn.to(episodes.support.dtype)


def reranking_gradient(points: Tensor, texts: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """[E, B, D] the gradient of the adaptive re-ranking loss, the mean over points and neighbours, at points [E, B, D] with
    labels [E, B], against unit vectors `texts` [E, N, D]."""
    transposed, own = texts.transpose(1, 2), labels.unsqueeze(-1)
    # A point on a text has no derivative of its distance; the limit keeps it finite.
    distances = (2 - 2 * l2_normalise(points) @ transposed).clamp_min(1e-12).sqrt()  # [E, B, N]
    near, which = distances.topk(min(neighbours, texts.shape[1]), largest=False)
    margins = (1 - (texts @ transposed).take_along_dim(own, 1).gather(2, which)) / _MARGIN_SCALE
    active = (distances.gather(2, own) + margins > near).to(near.dtype) / near[0].numel()  # [E, B, k]
    at_distances = torch.zeros_like(distances).scatter_(2, which, -active).scatter_add_(2, own, active.sum(-1, keepdim=True))
    return before_unit(-at_distances / distances @ texts, points)  # d distance / d cosine = -1 / distance
