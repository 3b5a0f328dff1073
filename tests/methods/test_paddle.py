from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from tests.methods.agreement import check_soft
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("paddle", {}, "paddle"), ("paddle", {"prior_weight": 0.0}, "paddle_soft_km")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_prototypes_of_official_code(oracles, case):
    for inputs in inputs_of(oracles, case[2]):
        episodes, _ = load_inputs(oracles, inputs)
        expected = load_outputs(oracles, case[2], inputs)[0]["prototypes"]
        # The official scaler also subtracts the query minimum.
        shift = episodes.query.amin(1, keepdim=True)
        found = create_method(case[0], **case[1]).refine(episodes).prototypes - shift
        np.testing.assert_allclose(found[:len(expected)].numpy(), expected, atol=1e-6 * np.abs(expected).max())


def reference(support, labels, query, ways, iterations, weight):
    """The card, one episode in coordinates: assignments before the last update, centroids after it."""
    spread = query.max(0) - query.min(0)
    spread[spread == 0] = 1
    support, query = support / spread, query / spread
    y, v = np.eye(ways)[labels], np.zeros(ways)
    w = y.T @ support / y.sum(0)[:, None]
    for _ in range(iterations):
        scores = -((query[:, None] - w[None]) ** 2).sum(-1) / 2 + weight * v
        u = np.exp(scores - scores.max(1, keepdims=True))
        u /= u.sum(1, keepdims=True)
        v = np.log(u.mean(0) + 1e-6) + 1
        w = (u.T @ query + y.T @ support) / (u.sum(0) + y.sum(0))[:, None]
    return u, w


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_equals_a_plain_loop_on_unequal_shots(weight):
    episodes = random_episodes(shots=3, queries=17)
    kept = [0, 1, 2, 3, 4, 6, 8, 11]
    episodes = dataclasses.replace(episodes, support=episodes.support[:, kept],
                                   support_labels=episodes.support_labels[:, kept])
    found = create_method("paddle", iterations=7, prior_weight=weight).refine(episodes)
    for e in range(3):
        arrays = (x[e].numpy() for x in (episodes.support, episodes.support_labels, episodes.query))
        u, w = reference(*arrays, ways=5, iterations=7, weight=weight)
        np.testing.assert_allclose(found.logits[e].softmax(-1).numpy(), u, atol=1e-12)
        np.testing.assert_allclose(found.prototypes[e].numpy(), w, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_objective_never_increases(weight):
    episodes = random_episodes(queries=20, spread=1.5)
    labels = episodes.support_labels.unsqueeze(-1).expand(-1, -1, 16)
    values, params = [], {"prior_weight": weight, "scale_by_range": False}
    for iterations in range(1, 40):
        found = create_method("paddle", iterations=iterations, **params).refine(episodes)
        u, w = found.logits.softmax(-1), found.prototypes
        to_queries = (u * (episodes.query[:, :, None] - w[:, None]).square().sum(-1)).sum((1, 2)) / 2
        to_support = (episodes.support - w.gather(1, labels)).square().sum((1, 2)) / 2
        share = u.mean(1) + 1e-6
        penalty = -weight * 20 * (share * share.log()).sum(-1)
        values.append(to_queries + to_support + (u * u.clamp_min(1e-300).log()).sum((1, 2)) + penalty)
    steps = torch.stack(values).diff(dim=0)
    assert steps.max() < 1e-9
    assert steps[0].max() < -1e-3, "nothing was minimised"


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_shift_of_the_features_changes_nothing(weight, scaled):
    method = create_method("paddle", prior_weight=weight, scale_by_range=scaled)
    episodes = random_episodes(queries=20)
    moved = method.refine(episodes.with_features(lambda x: x + 300))
    still = method.refine(episodes)
    torch.testing.assert_close(moved.logits, still.logits, atol=1e-7, rtol=0)
    single = method(episodes.to(torch.float32).with_features(lambda x: x + 300))
    torch.testing.assert_close(single.softmax(-1).double(), still.logits.softmax(-1), atol=5e-3, rtol=0)


def test_range_scaling_undoes_the_scale_of_a_channel():
    episodes = random_episodes(queries=20)
    factors = torch.logspace(-3, 3, 16, dtype=torch.float64)
    method = create_method("paddle")
    torch.testing.assert_close(method(episodes.with_features(lambda x: x * factors)), method(episodes))


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_channel_that_is_constant_up_to_rounding_is_not_blown_up(noise):
    episodes = random_episodes(queries=20, dtype=torch.float32)
    constant = dataclasses.replace(episodes, query=episodes.query.clone())
    constant.query[..., 3] = 1 + noise * (torch.arange(20) % 2)
    without = episodes.with_features(lambda x: torch.cat([x[..., :3], x[..., 4:]], -1))
    u, v = (create_method("paddle", prior_weight=0.0)(x).softmax(-1) for x in (constant, without))
    assert (u - v).abs().mean() < 0.2


def test_rotation_without_range_scaling():
    episodes = random_episodes(queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    method = create_method("paddle", scale_by_range=False)
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation)), method(episodes))


def test_history_and_counts():
    found = create_method("paddle", iterations=4).refine(random_episodes(), history=True)
    assert len(found.history) == 4 and torch.equal(found.history[-1], found.prototypes)
    assert found.iterations.tolist() == [4, 4, 4] and found.converged.all()
    shorter = create_method("paddle", iterations=3).refine(random_episodes())
    torch.testing.assert_close(found.history[2], shorter.prototypes)
    assert shorter.history is None


@pytest.mark.parametrize("params", [{"iterations": 0}, {"prior_weight": -1.0}])
def test_wrong_parameters(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("paddle", **params)
