"""Query shift and prototype rectification of BD-CSPN, shared by the methods that start from them."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.episodes.types import Episodes
from fewshot.ops.class_reductions import best_class
from fewshot.ops.distances import cosine, l2_normalise, nonzero
from fewshot.ops.features import off_base_mean
from fewshot.ops.prototypes import one_hot, prototypes


def aligned(episodes: Episodes, norm: str = "un", base_mean: Tensor | None = None) -> Episodes:
    """The episodes normalised as by `normalise_episodes`, and the queries then moved by mean(support) - mean(query).

    The shift assumes that support and query hold the classes in the same proportions. A single query is not moved: it
    would land on the mean of the support, whatever it is.
    """
    episodes = off_base_mean(episodes, norm, base_mean)
    support, query = episodes.support, episodes.query
    if norm == "un":
        scale = query.new_ones(*query.shape[:2], 1)
    else:
        support = l2_normalise(support)
        scale = nonzero(query.norm(dim=-1, keepdim=True)).reciprocal()  # [E, Q, 1]
    # Queries are scaled and moved in one pass: the mean of the scaled ones is a product with their scales.
    shift = support.mean(dim=1, keepdim=True) - scale.transpose(1, 2) @ query / query.shape[1] if query.shape[1] > 1 else \
        query.new_zeros(len(query), 1, 1)
    return episodes.replace(support=support, query=torch.addcmul(shift, query, scale))


def rectified_prototypes(episodes: Episodes, scale: float = 10.0, normalised: bool = True,
                         query_lengths: Tensor | None = None) -> Tensor:
    """Prototypes [E, N, D] re-estimated from support and queries, weighted by scale * cosine to the class means w of the
    support.

    normalised   True (paper): weights exp(scale cos(x, w_n)) normalised over the members of class n: its
                 own support and the points nearest to w_n among the queries.
                 False (code of LaplacianShot and of the Realistic benchmark): (1/|A_n|) sum over A_n of
                 softmax_n(scale cos(x, w)) x, where A_n holds the support and query points nearest to w_n. These
                 weights do not sum to one, so the prototypes are shorter than their members. A class that no point is
                 nearest to keeps w_n (the official code drops the class and fails).
    query_lengths   |x| [E, Q] of the queries, where known
    """
    support, query, ways = episodes.support, episodes.query, episodes.ways
    shots, means = support.shape[1], prototypes(episodes)
    # Support and queries are not copied into one array: only their similarities are.
    similarities = cosine(support, means), cosine(query, means, query_lengths)
    similarity = scale * torch.cat([x.transpose(1, 2) for x in similarities], dim=-1)  # [E, N, P]
    members = one_hot(best_class(similarity), ways, query.dtype).transpose(1, 2)  # [E, N, P]
    if normalised:
        truth = one_hot(episodes.support_labels, ways, query.dtype).transpose(1, 2)
        members = torch.cat([truth, members[..., shots:]], dim=-1)
        weights = similarity.masked_fill(members == 0, -torch.inf).softmax(dim=-1)
    else:
        weights = members * similarity.softmax(dim=1)
    rectified = torch.baddbmm(weights[..., :shots] @ support, weights[..., shots:], query)
    if normalised:
        return rectified
    size = members.sum(-1, keepdim=True)
    return (rectified / size.clamp_min(1)).where(size > 0, means)
