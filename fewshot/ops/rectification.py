"""Query shift and prototype rectification of BD-CSPN, shared by the methods that start from them."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.episodes import Episodes
from fewshot.ops.distances import l2_normalise
from fewshot.ops.prototypes import one_hot, weighted_means


def aligned_points(episodes: Episodes) -> Tensor:
    """Support, then the queries moved by mean(support) - mean(query): [E, S+Q, D].

    The shift assumes that support and query hold the classes in the same proportions.
    """
    points = torch.cat([episodes.support, episodes.query], dim=1)
    shift = episodes.support.mean(dim=1, keepdim=True) - episodes.query.mean(dim=1, keepdim=True)
    points[:, episodes.support.shape[1]:] += shift
    return points


def rectified_prototypes(points: Tensor, support_labels: Tensor, ways: int, scale: float = 10.0,
                         normalised: bool = True) -> Tensor:
    """Prototypes [E, N, D] re-estimated from points [E, S+Q, D] (support first), weighted by scale * cosine to the
    class means w of the support.

    normalised   True (paper): weights exp(scale cos(x, w_n)) normalised over the members of class n: its
                 own support and the points nearest to w_n among the queries.
                 False (code of LaplacianShot and of the Realistic benchmark): (1/|A_n|) sum over A_n of
                 softmax_n(scale cos(x, w)) x, where A_n holds the support and query points nearest to w_n. These
                 weights do not sum to one, so the prototypes are shorter than their members. A class that no point is
                 nearest to keeps w_n (the official code drops the class and fails).
    """
    shots = support_labels.shape[1]
    truth = one_hot(support_labels, ways, points.dtype)
    means = weighted_means(points[:, :shots], truth)
    norms = points.norm(dim=-1).clamp_min(1e-12).unsqueeze(1)  # [E, 1, P]
    similarity = scale * (l2_normalise(means) @ points.transpose(1, 2)) / norms  # [E, N, P]
    members = one_hot(similarity.argmax(dim=1), ways, points.dtype).transpose(1, 2)  # [E, N, P]
    if normalised:
        members = torch.cat([truth.transpose(1, 2), members[..., shots:]], dim=-1)
        return similarity.masked_fill(members == 0, -torch.inf).softmax(dim=-1) @ points
    size = members.sum(-1, keepdim=True)
    rectified = (members * similarity.softmax(dim=1)) @ points / size.clamp_min(1)
    return rectified.where(size > 0, means)
