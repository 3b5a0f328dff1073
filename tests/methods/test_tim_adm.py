from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.methods.contract import create_method
from tests.methods.agreement import check_soft

AGREEMENT = [("tim_adm", {}, "tim_adm")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


def reference(support, labels, query, ways, iterations, weights, scale):
    """The card, one episode, in coordinates of the full feature space."""
    l0, l1, l2 = weights
    support, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (support, query))
    y = np.eye(ways)[labels]
    w = y.T @ support / y.sum(0)[:, None]

    def probabilities(x):
        scores = -scale / 2 * ((x[:, None] - w[None]) ** 2).sum(-1)
        p = np.exp(scores - scores.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    for _ in range(iterations):
        p_support, p = probabilities(support), probabilities(query)
        sharp = p ** (1 + l2)
        q = sharp / sharp.sum(0) ** (l1 / (1 + l1))
        q /= q.sum(1, keepdims=True)
        a, b = l0 / (1 + l2), len(support) / len(query)
        numerator = a * (y.T @ support + w * p_support.sum(0)[:, None] - p_support.T @ support)
        numerator += b * (q.T @ query + w * p.sum(0)[:, None] - p.T @ query)
        w = numerator / (a * y.sum(0) + b * q.sum(0))[:, None]
    return probabilities(query)


@pytest.mark.parametrize("dim", [16, 60])
@pytest.mark.parametrize("weights", [(0.1, 1.0, 0.1), (1.0, 0.5, 0.3)])
def test_equals_a_plain_loop(dim, weights):
    """Also in the span of the points (dim=60)."""
    episodes = random_episodes(shots=3, queries=17, dim=dim)
    kept = [0, 1, 2, 3, 4, 6, 8, 11]
    episodes = dataclasses.replace(episodes, support=episodes.support[:, kept],
                                   support_labels=episodes.support_labels[:, kept])
    names = dict(zip(("cross_entropy", "marginal", "conditional"), weights, strict=True))
    found = create_method("tim_adm", iterations=12, scale=9.0, **names)(episodes).softmax(-1)
    for e in range(3):
        expected = reference(episodes.support[e].numpy(), episodes.support_labels[e].numpy(), episodes.query[e].numpy(),
                             5, 12, weights, 9.0)
        np.testing.assert_allclose(found[e].numpy(), expected, atol=1e-10)


def test_the_objective_goes_down():
    """ADM minimises a bound of TIM's objective, so the objective itself ends up lower."""
    episodes = random_episodes(episodes=4, shots=2, queries=30, spread=1.5)
    history = create_method("tim_adm", iterations=40).refine(episodes, history=True).history
    unit = episodes.with_features(lambda x: torch.nn.functional.normalize(x, dim=-1))
    labels = torch.nn.functional.one_hot(unit.support_labels, 5).double()

    def loss(means):
        log_s, log_q = ((-7.5 * torch.cdist(x, means).square()).log_softmax(-1) for x in (unit.support, unit.query))
        p, mean = log_q.exp(), log_q.exp().mean(1)
        marginal = -(mean * mean.log()).sum(-1)
        return -0.1 * (labels * log_s).sum(-1).mean(1) - marginal - 0.1 * (p * log_q).sum(-1).mean(1)

    losses = torch.stack([loss(means) for means in history])
    assert (losses[-1] < losses[0] - 1e-3).all()
