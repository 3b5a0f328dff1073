"""TransCLIP: Gaussian classes fitted to all queries at once, held to what the texts say and to each query's neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.core.checked import check_at_least, check_choice, check_integer
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, IterativeMethod, Refinement
from fewshot.ops.distances import l2_normalise
from fewshot.ops.prototypes import one_hot
from fewshot.ops.text import text_logits

_SCALE = 50.0  # of the likelihood against the other terms, in the official program
_CONFIDENT = 8  # queries that begin a class without shots
_BLOCK = 1024  # points whose similarities to all queries are looked at together


@METHODS.register("transclip")
@dataclass(frozen=True)
class TransCLIP(IterativeMethod):
    """Block updates of soft labels z [Q, N], class means mu [N, D] of unit length and one diagonal variance s [D]:

        z_i    ~ y_i^text_weight exp(l_i / 50 + sum over its neighbours j of w_ij z_j / (2 neighbours)),  `sweeps` times
        mu_n   ~ mean over queries of z_in q_i + 50 gamma mean over support items of class n, made unit length
        s      the variance around mu, with the same weights

    y_i = softmax of the texts' logits (those of `zero_shot`), l_in = -1/2 sum_d (q_id - mu_nd)^2 / s_d; w are the cosines of
    each query and support item with its nearest queries, in both directions. Labels of support items stay as they are. After
    `iterations` rounds the answer is a last z; logits are its logarithm up to a constant for each query.

    zero_shot    leave the support out: classes begin as the mean of the 8 queries that the texts are surest of
    gamma        weight of the support; the paper chooses 0.002, 0.01, 0.02 or 0.2 on validation images (`searched_grid`).
                 Beside texts that are weaker than CLIP's the large ones can collapse: choose on validation images
    text_weight  lambda; None for the paper's 1 without support and 0.5 with it
    text_scale   weight of the texts' logits before the softmax; 0 leaves them out
    iterations, sweeps, neighbours   of the paper
    variant      "official" for two slips of the official program with support: the graph's rows are in the order support,
                 queries and the labels it multiplies in the order queries, support, and of a support item the nearest query
                 is left out, as if it were the item itself

    Deviations: the program keeps z, mu and s from one gamma to the next; here each begins anew. Variances are at least the
    rounding error of 1.
    """

    paper = "Zanella et al. 2024 (TransCLIP), arXiv:2406.01837; MaxZanella/transduction-for-vlms"
    needs_text = True
    searched_grid = {"gamma": (0.002, 0.01, 0.02, 0.2)}

    zero_shot: bool = False
    gamma: float = 0.002
    text_weight: float | None = None
    text_scale: float = 1.0
    iterations: int = 10
    sweeps: int = 5
    neighbours: int = 3
    variant: str = "sane"

    def __post_init__(self) -> None:
        check_at_least(0, gamma=self.gamma, text_scale=self.text_scale, text_weight=self.text_weight)
        for name, least in (("iterations", 0), ("sweeps", 1), ("neighbours", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        check_choice(("sane", "official"), variant=self.variant)

    def refine(self, episodes: Episodes, history: bool = False) -> Refinement:
        query, support = l2_normalise(episodes.query), l2_normalise(episodes.support)
        labels = one_hot(episodes.support_labels, episodes.ways, query.dtype)  # [E, S, N]
        if self.zero_shot:
            support, labels = support[:, :0], labels[:, :0]
        prior = text_logits(episodes, self.text_scale).log_softmax(-1)  # log y [E, Q, N]
        z = prior.exp()
        mu = _confident_means(z, query) if self.zero_shot else l2_normalise(labels.transpose(1, 2) @ support)
        variance = query.new_full((len(query), 1, query.shape[-1]), 1 / query.shape[-1])
        weight = self.text_weight if self.text_weight is not None else 1.0 if self.zero_shot else 0.5
        graph = _Graph(query, support, self.neighbours, labels, self.variant == "official")
        seen = [mu]
        for step in range(self.iterations + 1):
            # -1/2 (q - mu)^2 / s without q^2 / s, which all classes of a query share.
            scaled = mu / variance
            likelihood = query @ scaled.transpose(1, 2) - (mu * scaled).sum(-1).unsqueeze(1) / 2
            for _ in range(self.sweeps):
                logits = weight * prior + likelihood / _SCALE + graph.pull(z)
                z = logits.softmax(-1)
            if step < self.iterations:
                mu, variance = self._moments(z, query, support, labels)
                seen.append(mu)
        space = episodes.replace(query=query, support=l2_normalise(episodes.support)) if history else None
        return Refinement.of_fixed_steps(logits, mu, self.iterations, seen if history else None, space)

    def _moments(self, z: Tensor, query: Tensor, support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(means [E, N, D] of unit length, variance [E, 1, D] around them)."""
        of_support = self.gamma * _SCALE / max(1, support.shape[1])
        sums = z.transpose(1, 2) @ query / query.shape[1] + of_support * (labels.transpose(1, 2) @ support)
        each = (z.sum(1) / query.shape[1] + of_support * labels.sum(1)).unsqueeze(-1)  # [E, N, 1]
        mu = l2_normalise(sums)
        squares = query.square().mean(1, keepdim=True) + of_support * support.square().sum(1, keepdim=True)
        spread = squares + (mu * (each * mu - 2 * sums)).sum(1, keepdim=True)
        return mu, (spread / each.sum(1, keepdim=True)).clamp_min(torch.finfo(query.dtype).eps)


def _confident_means(z: Tensor, query: Tensor) -> Tensor:
    """[E, N, D] unit mean of the queries that a class is surest of, weighted by z [E, Q, N]."""
    sure, which = z.topk(min(_CONFIDENT, z.shape[1]), dim=1)  # [E, 8, N]
    found = query.unsqueeze(2).expand(-1, -1, z.shape[2], -1).gather(
        1, which.unsqueeze(-1).expand(-1, -1, -1, query.shape[-1]))
    return l2_normalise((sure.unsqueeze(-1) * found).sum(1))


class _Graph:
    """Each query and support item tied to its nearest queries by their cosine."""

    def __init__(self, query: Tensor, support: Tensor, neighbours: int, labels: Tensor, official: bool):
        self._labels, self._half = labels, 1 / (2 * max(1, neighbours))
        among = _nearest(query, query, neighbours, alone=True)
        places, cosines = _nearest(support, query, neighbours + official)
        of_support = places[..., int(official) :], cosines[..., int(official) :]
        # Rows: [E, R, k] places among the queries and their cosines.
        parts = (of_support, among) if official else (among, of_support)
        count = min(among[0].shape[2], of_support[0].shape[2]) if support.shape[1] else among[0].shape[2]
        self._nearest, self._cosines = (torch.cat([part[field][..., :count] for part in parts], 1) for field in (0, 1))

    def pull(self, z: Tensor) -> Tensor:
        """(W^T z + W z) / (2 neighbours) [E, Q, N] of the queries; W has a row for each point, a column for each query."""
        whole, queries, pulled = torch.cat([z, self._labels], 1), z.shape[1], torch.zeros_like(z)
        for place, cosine in zip(self._nearest.unbind(-1), self._cosines.unbind(-1), strict=True):
            at, cosine = place.unsqueeze(-1).expand(-1, -1, z.shape[2]), cosine.unsqueeze(-1)
            pulled.scatter_add_(1, at, cosine * whole)
            pulled += cosine[:, :queries] * z.gather(1, at[:, :queries])
        return pulled * self._half


def _nearest(points: Tensor, query: Tensor, neighbours: int, alone: bool = False) -> tuple[Tensor, Tensor]:
    """([E, P, k] the queries nearest to each point, their cosines); `alone`: the points are the queries, and none is its own
    neighbour."""
    count = max(0, min(neighbours, query.shape[1] - alone))
    places = torch.zeros(*points.shape[:2], count, dtype=torch.int64, device=points.device)
    cosines = points.new_zeros(places.shape)
    for start in range(0, points.shape[1], _BLOCK):
        near = points[:, start : start + _BLOCK] @ query.transpose(1, 2)
        if alone:
            near.diagonal(start, 1, 2).fill_(-torch.inf)
        cosines[:, start : start + _BLOCK], places[:, start : start + _BLOCK] = near.topk(count, dim=-1)
    return places, cosines
