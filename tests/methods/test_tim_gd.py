from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from fewshot.ops.entropy import information_gradient
from tests.methods.agreement import check_soft

REALISTIC = {"cross_entropy": 1.0, "marginal": 1.0, "conditional": 1.0}
AGREEMENT = [("tim_gd", {}, "tim_gd"), ("tim_gd", REALISTIC, "tim_gd_realistic")]
FAST = [("caltech28px_5w1s_balanced",), ("caltech28px_5w5s_dirichlet",)]


@pytest.mark.parametrize(("case", "inputs"), list(zip(AGREEMENT, FAST, strict=True)), ids=lambda value: str(value[-1]))
def test_agrees_with_official_code(oracles, case, inputs):
    check_soft(oracles, *case, only=inputs, first=4)


@pytest.mark.slow
@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code_on_all_inputs(oracles, case):
    check_soft(oracles, *case)


def objective(scores, labels, weights, alpha=1.0):
    """The loss of one episode, scores [N, S + Q], labels [N, S] one-hot."""
    cross_entropy, marginal, conditional = weights
    shots = labels.shape[1]

    def entropy(p):
        return -(p * p.log()).sum(0) if alpha == 1 else (1 - (p**alpha).sum(0)) / (alpha - 1)

    log_p = scores.log_softmax(0)
    query = log_p[:, shots:].exp()
    loss = -cross_entropy * (labels * log_p[:, :shots]).sum(0).mean()
    return loss - marginal * entropy(query.mean(1)) + conditional * entropy(query).mean()


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 2.0, 7.0])
def test_gradient_equals_autograd(alpha):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(4, 5, 17, generator=generator, dtype=torch.float64)
    labels = torch.eye(5, dtype=torch.float64).repeat(1, 2)[:, :7].expand(4, 5, 7)
    scores.requires_grad_()
    sum(objective(s, y, (0.3, 1.2, 0.7), alpha) for s, y in zip(scores, labels, strict=True)).backward()
    found = information_gradient(scores.detach().softmax(1), labels, (0.3, 1.2, 0.7), alpha)
    torch.testing.assert_close(found, scores.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("name", "alpha", "weights"),
                         [("tim_gd", 1.0, (0.1, 1.0, 0.1)), ("alpha_tim", 5.0, (1.0, 1.0, 1.0))])
def test_equals_torch_adam_on_each_episode(name, alpha, weights):
    episodes = random_episodes(shots=3, queries=16)
    kept = [0, 1, 2, 3, 4, 6, 8, 11]
    episodes = dataclasses.replace(episodes, support=episodes.support[:, kept],
                                   support_labels=episodes.support_labels[:, kept])
    params = {"alpha": alpha} if name == "alpha_tim" else {}
    found = create_method(name, iterations=25, learning_rate=0.01, **params)(episodes).softmax(-1)
    for e in range(3):
        support = torch.nn.functional.normalize(episodes.support[e], dim=-1)
        query = torch.nn.functional.normalize(episodes.query[e], dim=-1)
        labels = torch.nn.functional.one_hot(episodes.support_labels[e], 5).double().T
        means = (labels @ support / labels.sum(1, keepdim=True)).requires_grad_()
        optimiser = torch.optim.Adam([means], lr=0.01)
        for _ in range(25):
            optimiser.zero_grad()
            distances = (means[:, None] - torch.cat([support, query])[None]).square().sum(-1)
            objective(-7.5 * distances, labels, weights, alpha).backward()
            optimiser.step()
        expected = (-7.5 * (query[:, None] - means.detach()[None]).square().sum(-1)).softmax(-1)
        torch.testing.assert_close(found[e], expected, atol=1e-10, rtol=0)


def test_without_steps_it_is_the_nearest_class_mean():
    episodes = random_episodes()
    other = create_method("protonet")(episodes.with_features(lambda x: torch.nn.functional.normalize(x, dim=-1)))
    torch.testing.assert_close(create_method("tim_gd", iterations=0)(episodes), 7.5 * other)


def test_extreme_scale_and_tiny_marginals_stay_finite():
    """Classes whose mean probability underflows to 0 in float32."""
    episodes = random_episodes(queries=4, ways=20, dtype=torch.float32)
    for name in ("tim_gd", "tim_adm", "alpha_tim"):
        assert torch.isfinite(create_method(name, scale=5000.0, iterations=20)(episodes)).all()


def test_the_marginal_term_balances_the_predictions():
    """Its sign is easy to get wrong: with it alone the mean prediction approaches uniform."""
    episodes = random_episodes(queries=30, spread=2.0)

    def spread(marginal):
        method = create_method("tim_gd", cross_entropy=0.0, conditional=0.0, marginal=marginal, learning_rate=1e-3)
        return (method(episodes).softmax(-1).mean(1) - 0.2).abs().max()

    assert spread(1.0) < 0.02 < 0.05 < spread(0.0)


def test_negative_weights_are_refused():
    for name in ("tim_gd", "tim_adm", "alpha_tim"):
        with pytest.raises(FewshotError, match="negative"):
            create_method(name, marginal=-1.0)
