"""The official program with our initial weights (tests/official/putm.py), and a plain loop by autograd."""

from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import putm
from fewshot.methods.contract import create_method
from fewshot.ops.features import power_transform
from tests.methods.agreement import check_soft

AGREEMENT = [("putm", {"variant": "official"}, "putm_balanced"),
             ("putm", {"variant": "official", "query_prior": "unknown"}, "putm_dirichlet")]
SHORT = {"outer": 3, "inner": 4, "learning_rate": 0.01}


def reference(points, shots, labels, weights, step_size, rho, balance, target):
    """One episode by autograd and torch.optim.Adam, from given initial weights; returns the last scores."""
    support, query = points[:shots], points[shots:]
    y = torch.nn.functional.one_hot(labels, 5).double()
    w = y.T @ support / y.sum(0)[:, None]
    w1, b1, w2, b2, w3 = parameters = [p.clone().requires_grad_() for p in weights]
    optimiser = torch.optim.Adam(parameters, lr=SHORT["learning_rate"], betas=(0.5, 0.99))

    def train():
        for _ in range(SHORT["inner"]):
            difference = (query[:, None] - w[None]).square()
            cost = difference.sum(-1)
            hidden = torch.nn.functional.leaky_relu(difference @ w1 + b1)
            scores = -(torch.nn.functional.leaky_relu(hidden @ w2 + b2) @ w3).squeeze(-1)
            forward, backward = scores.softmax(1), scores.softmax(0)
            loss = rho * (cost * forward).sum(1).mean() + (1 - rho) * (cost * backward).sum(0).mean()
            sums = (rho * forward + (1 - rho) * backward).sum(0)
            optimiser.zero_grad()
            ((1 - balance) * loss + balance * (sums - target).square().mean()).backward()
            optimiser.step()
        return scores.detach()

    for _ in range(SHORT["outer"]):
        f = train().softmax(1)
        w = w + step_size * ((y.T @ support + f.T @ query) / (y.sum(0) + f.sum(0))[:, None] - w)
    return train()


@pytest.mark.parametrize(("params", "rho", "balance", "target"), [
    ({}, 1.0, 0.001, 17 / 5),
    ({"query_prior": "unknown"}, 0.5, 0.0, 0.0),
    ({"query_prior": (4, 1, 1, 2, 2), "rho": 0.7, "balance": 0.2}, 0.7, 0.2,
     torch.tensor([6.8, 1.7, 1.7, 3.4, 3.4], dtype=torch.float64)),
    ({"variant": "official", "balance": 0.1}, 1.0, 0.1, 0.2),
])
@pytest.mark.parametrize("shots", [1, 2])
def test_equals_autograd_on_each_episode(params, rho, balance, target, shots):
    episodes = random_episodes(episodes=2, shots=shots, queries=17, dim=12)
    method = create_method("putm", **SHORT, **params)
    weights = [p[0] for p in method._weights(episodes.query)]
    found = method(episodes)
    if isinstance(target, torch.Tensor):
        target = rho * target + (1 - rho)
    for e in range(2):
        points = power_transform(torch.cat([episodes.support[e], episodes.query[e]]), 0.6)
        if "variant" not in params:
            points = points @ torch.linalg.eigh(points.T @ points).eigenvectors.flip(-1)
        points = torch.nn.functional.normalize(points, dim=-1)
        expected = reference(points, 5 * shots, episodes.support_labels[e], weights, 0.2 if shots == 1 else 0.1, rho,
                             balance, target)
        torch.testing.assert_close(found[e], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("query_prior", ["balanced", "unknown"])
def test_queries_in_blocks(query_prior, monkeypatch):
    episodes = random_episodes(episodes=2, queries=17, dim=12)
    method = create_method("putm", **SHORT, query_prior=query_prior)
    whole = method(episodes)
    monkeypatch.setattr(putm, "_MOST_BYTES", 0)
    monkeypatch.setattr(putm, "_BYTES", 5 * 8 * 5 * (12 + 2 * sum(putm.HIDDEN)))  # of 5 queries: blocks of 5, 5, 5 and 2
    torch.testing.assert_close(method(episodes), whole, atol=1e-9, rtol=0)


def test_equals_the_official_program(oracles):
    """All 1,530 steps of one episode. What differs without a known prior is above, step by step."""
    check_soft(oracles, *AGREEMENT[0], only=("caltech28px_5w5s_balanced",), first=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_equals_the_official_program_on_every_input(oracles, case):
    """The balanced episodes have their support shot by shot, the others class by class."""
    check_soft(oracles, *case)


def test_more_features_than_points():
    """The span of 25 points of 200 dimensions: order of points and batch mates do not matter."""
    episodes = random_episodes(shots=2, queries=15, dim=200)
    method = create_method("putm", **SHORT)
    found = method(episodes).softmax(-1)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    other = method(type(episodes)(episodes.support, episodes.support_labels, episodes.query[:, order], 5)).softmax(-1)
    torch.testing.assert_close(other, found[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(method(episodes[2]).softmax(-1), found[2:], atol=1e-9, rtol=0)


def test_the_seed_decides_and_global_state_does_not():
    episodes = random_episodes()
    first = create_method("putm", **SHORT)(episodes)
    torch.rand(3)
    assert torch.equal(create_method("putm", **SHORT)(episodes), first)
    assert not torch.equal(create_method("putm", seed=1, **SHORT)(episodes), first)


def test_training_lowers_the_transport_cost():
    """After many steps with balance=0 the forward plan is close to the nearest prototype of each query."""
    episodes = random_episodes(queries=20, spread=0.5)
    params = {"balance": 0.0, "rho": 1.0, "outer": 0, "learning_rate": 0.01}
    unit = power_transform(torch.cat([episodes.support, episodes.query], 1), 0.6)
    unit = torch.nn.functional.normalize(unit, dim=-1)
    labels = torch.nn.functional.one_hot(episodes.support_labels, 5).double()
    means = labels.transpose(1, 2) @ unit[:, :10] / 2
    cost = torch.cdist(unit[:, 10:], means).square()

    def mean_cost(inner):
        return (create_method("putm", inner=inner, **params)(episodes).softmax(-1) * cost).sum(-1).mean()

    assert mean_cost(300) < 0.5 * mean_cost(1) + 0.5 * cost.amin(-1).mean()


def test_wrong_parameters_are_named():
    for params in ({"variant": "fast"}, {"rho": 1.5}, {"balance": -0.1}):
        with pytest.raises(FewshotError, match=next(iter(params))):
            create_method("putm", **params)


def test_episodes_trained_in_parts_are_those_trained_together(monkeypatch):
    episodes = random_episodes(episodes=5)
    method = create_method("putm", **SHORT)
    together = method.refine(episodes, history=True)
    monkeypatch.setattr("fewshot.methods.putm._BYTES", 0)  # one by one
    parts = method.refine(episodes, history=True)
    for found, expected in ((parts.logits, together.logits), (parts.prototypes, together.prototypes),
                            (torch.stack(parts.history), torch.stack(together.history))):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
