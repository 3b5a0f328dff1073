"""Mutual-information refinement of prototypes by gradient descent, shared by TIM and alpha-TIM.

Arrays over points keep them on the last axis, [E, N, S + Q]: matrix products and the softmax over N are then fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.ops.adam import Adam
from fewshot.ops.prototypes import one_hot, prototypes


def check_weights(cross_entropy: float, marginal: float, conditional: float) -> None:
    if min(cross_entropy, marginal, conditional) < 0:
        raise FewshotError(f"weights ({cross_entropy}, {marginal}, {conditional}) of cross-entropy, marginal and "
                           "conditional entropy must not be negative; the signs are part of the objective")


def soft_assignments(points: Tensor, means: Tensor, scale: float) -> Tensor:
    """softmax over N of -scale / 2 |x_i - w_n|^2 for points [E, A, D] and means [E, N, D] -> [E, N, A].

    |x_i|^2 is the same for every class and left out.
    """
    bias = means.square().sum(-1, keepdim=True)  # [E, N, 1]
    scores = torch.baddbmm(bias, means, points.transpose(1, 2), beta=-scale / 2, alpha=scale)
    return torch.softmax(scores, dim=1)


def entropy_slope(p: Tensor, alpha: float) -> Tensor:
    """d H_alpha / d p elementwise, up to a constant, of Tsallis' entropy H_alpha = (1 - sum p^alpha) / (alpha - 1);
    alpha = 1 is Shannon's. The constant has no effect because p is a softmax."""
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log_()
    # expm1 keeps the digits for alpha near 1, where p^(alpha - 1) is nearly 1.
    return log_p.neg_() if alpha == 1 else log_p.mul_(alpha - 1).expm1_().mul_(alpha / (1 - alpha))


def information_gradient(p: Tensor, labels: Tensor, weights: tuple[float, float, float], alpha: float) -> Tensor:
    """Gradient with respect to the scores (softmax inputs) of the objective

        cross_entropy * mean_S CE(p, y) - marginal * H(mean_Q p) + conditional * mean_Q H(p)

    p [E, N, S + Q] with the support first, labels [E, N, S] one-hot, weights (cross_entropy, marginal, conditional).
    """
    shots = labels.shape[2]
    support, query = p[..., :shots], p[..., shots:]
    queries = query.shape[2]
    cross_entropy, marginal, conditional = weights
    gradient = torch.empty_like(p)
    torch.sub(support, labels, out=gradient[..., :shots]).mul_(cross_entropy / shots)
    slope = entropy_slope(query, alpha).mul_(conditional / queries)
    slope -= entropy_slope(query.mean(2, keepdim=True), alpha).mul_(marginal / queries)
    # Through the softmax: d p_m / d score_n = p_m (1[m = n] - p_n).
    of_query = torch.mul(slope, query, out=gradient[..., shots:])
    of_query.addcmul_(query, of_query.sum(1, keepdim=True), value=-1)
    return gradient


@torch.no_grad()
def maximise_information(episodes: Episodes, scale: float, weights: tuple[float, float, float], alpha: float,
                         iterations: int, learning_rate: float, history: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Adam on the prototypes [E, N, D], from the class means; p = softmax(-scale / 2 |z - w|^2).

    The objective of `information_gradient` is summed over episodes, and Adam works elementwise, so that episodes do not
    influence each other. Its update depends on the axes of the features: no rotation and no span beforehand. Returns
    the final prototypes and, with `history`, those of every iteration.
    """
    points = torch.cat([episodes.support, episodes.query], dim=1)  # [E, S + Q, D]
    labels = one_hot(episodes.support_labels, episodes.ways, points.dtype).transpose(1, 2).contiguous()
    means = prototypes(episodes)
    adam = Adam([means], learning_rate)
    trace = [means.clone()] if history else []
    for _ in range(iterations):
        p = soft_assignments(points, means, scale)
        pull = information_gradient(p, labels, weights, alpha)  # [E, N, S + Q]
        gradient = torch.baddbmm(means * pull.sum(2, keepdim=True), pull, points, beta=-scale, alpha=scale)
        adam.step([gradient])
        if history:
            trace.append(means.clone())
    return means, trace
