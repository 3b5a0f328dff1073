from __future__ import annotations

import dataclasses

import numpy as np
import ot
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from tests.methods.agreement import check_soft
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("pt_map", {"variant": "official"}, "pt_map")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case, only=("caltech_5w1s_dirichlet", "caltech_20w5s_keff5"), first=4)


@pytest.mark.slow
@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code_on_all_inputs(oracles, case):
    check_soft(oracles, *case)


def test_converged_variant_stays_near_the_official_stop(oracles):
    """Within 1e-2 in probability (the stop is early) and with the same labels where the margin is larger."""
    for inputs in inputs_of(oracles, "pt_map"):
        outputs, _ = load_outputs(oracles, "pt_map", inputs)
        found = create_method("pt_map").refine(load_inputs(oracles, inputs)[0])
        assert found.converged.all()
        np.testing.assert_allclose(found.logits.exp().numpy(), outputs["probs"], atol=1e-2)
        top = np.sort(outputs["probs"], axis=-1)
        clear = top[..., -1] - top[..., -2] > 2e-2
        assert np.array_equal(found.logits.argmax(-1).numpy()[clear], outputs["preds"][clear])


def reference(support, labels, query, ways, prior, iterations, weights=None):
    """The card, one episode, with POT's solvers; weights: of the unbalanced one."""
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def prepare(x):
        x = unit((x + 1e-6) ** 0.5)
        return unit(x - x.mean(0))

    support, query, y = prepare(support), prepare(query), np.eye(ways)[labels]
    w = y.T @ support / y.sum(0)[:, None]
    for epoch in range(iterations + 1):
        cost = ((query[:, None] - w[None]) ** 2).sum(-1)
        rows, cols = np.ones(len(query)), prior * len(query)
        if weights is None:
            plan = ot.bregman.sinkhorn_log(rows, cols, cost, 0.1, stopThr=1e-10, numItermax=100_000)
        else:
            plan = ot.unbalanced.sinkhorn_unbalanced(rows, cols, cost, 0.1, weights, reg_type="entropy", stopThr=1e-13,
                                                     numItermax=100_000)
        if epoch < iterations:
            mean = (plan.T @ query + y.T @ support) / (plan.sum(0) + y.sum(0))[:, None]
            w = w + 0.2 * (mean - w)
    return plan


@pytest.mark.parametrize("prior", [None, (0.1, 0.4, 0.2, 0.2, 0.1)])
def test_equals_a_plain_loop(prior):
    episodes = random_episodes(episodes=1, shots=2, queries=13, dim=40)
    found = create_method("pt_map", iterations=6, **({} if prior is None else {"query_prior": prior}))(episodes)
    expected = reference(episodes.support[0].numpy(), episodes.support_labels[0].numpy(), episodes.query[0].numpy(), 5,
                         np.full(5, 0.2) if prior is None else np.array(prior), 6)
    np.testing.assert_allclose(found[0].exp().numpy(), expected, atol=1e-7)


def test_the_prior_sets_the_class_frequencies():
    episodes = random_episodes(queries=20, spread=2.0)
    counts = create_method("pt_map")(episodes).exp().sum(1)
    torch.testing.assert_close(counts, torch.full((3, 5), 4.0, dtype=counts.dtype), atol=1e-6, rtol=0)
    found = create_method("pt_map", query_prior=(0.5, 0.5, 0, 0, 0))(episodes)
    assert torch.isfinite(found).all() and (found.argmax(-1) < 2).all()
    free = create_method("pt_map", query_prior="unknown")(episodes).exp().sum(1)
    assert (free - 4).abs().max() > 0.5


def test_rotation_after_the_power_does_not_matter():
    """power=1 leaves non-negative features as they are, up to 1e-6."""
    episodes = random_episodes(dim=40)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    method = create_method("pt_map", power=1.0)
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation)).exp(), method(episodes).exp(),
                               atol=1e-4, rtol=0)


@pytest.mark.parametrize(("prior", "class_weight"), [("balanced", 0.5), ((3, 1, 1, 1, 2), 0.5), ("balanced", None),
                                                     ("unknown", None)])
def test_unbalanced_plans_equal_a_plain_loop(prior, class_weight):
    episodes = random_episodes(episodes=2, queries=13, seed=4)
    method = create_method("pt_map", iterations=4, query_weight=0.2, class_weight=class_weight, query_prior=prior)
    found = method.refine(episodes)
    assert found.converged.all() and method.setting == "transductive"
    of_class = 0.0 if prior == "unknown" else class_weight or np.inf
    shares = np.full(5, 0.2) if isinstance(prior, str) else np.array(prior) / sum(prior)
    for e in range(2):
        expected = reference(episodes.support[e].numpy(), episodes.support_labels[e].numpy(), episodes.query[e].numpy(), 5,
                             shares, 4, (0.2, of_class))
        np.testing.assert_allclose(found.logits[e].exp().numpy(), expected, atol=1e-7)


def test_open_queries_get_less_mass():
    """Known queries lie at their class, open ones elsewhere; a balanced plan hands them out all the same."""
    known = random_episodes(ways=3, spread=0.05)
    other = random_episodes(ways=3, spread=0.05, seed=9)
    mixed = dataclasses.replace(known, query=torch.cat([known.query, other.query], 1))
    masses = [create_method("pt_map", **settings)(mixed).exp().sum(2)
              for settings in ({}, {"query_weight": 0.1, "class_weight": 1.0})]
    torch.testing.assert_close(masses[0], torch.ones_like(masses[0]), atol=1e-5, rtol=0)
    assert masses[1][:, :15].min() > 2 * masses[1][:, 15:].max()


def test_wrong_parameters_are_named():
    for settings, message in [({"query_weight": -1.0}, "query_weight=-1"), ({"class_weight": -1.0}, "class_weight=-1"),
                              ({"class_weight": 1.0, "query_prior": "unknown"}, "has none; leave it out"),
                              ({"query_weight": 1.0, "variant": "official"}, "variant='converged'")]:
        with pytest.raises(FewshotError, match=message):
            create_method("pt_map", **settings)
    for params in ({"variant": "fast"}, {"step_size": 0.0}):
        with pytest.raises(FewshotError, match=next(iter(params))):
            create_method("pt_map", **params)
    with pytest.raises(FewshotError, match="query_prior"):
        create_method("pt_map", query_prior=(0.5, 0.5))(random_episodes())
