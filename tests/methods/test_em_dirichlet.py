from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from fewshot.methods.em_dirichlet import name_clusters
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("em_dirichlet", {"k_eff": 5}, "em_dirichlet")]
INPUTS = ["caltech_simplex_10w4s_keff5", pytest.param("caltech_simplex_20w4s_keff5", marks=pytest.mark.slow)]


@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_with_official_code(oracles, inputs):
    """float64 on the episodes that have it, float32 on all of them."""
    assert inputs in inputs_of(oracles, "em_dirichlet")
    outputs, description = load_outputs(oracles, "em_dirichlet", inputs)
    method = create_method("em_dirichlet", k_eff=5)
    exact = method.refine(load_inputs(oracles, inputs)[0][:4])
    np.testing.assert_allclose(exact.logits.softmax(-1).numpy(), outputs["probs_f64"], rtol=0,
                               atol=description["expected_agreement"]["float64"])
    np.testing.assert_allclose(exact.prototypes.numpy(), outputs["dirichlet_alpha"], rtol=1e-6)
    single = method(load_inputs(oracles, inputs, torch.float32)[0]).softmax(-1).numpy()
    tolerance = description["per_input"][inputs]["tolerance_float32"]
    np.testing.assert_allclose(single, outputs["probs"], atol=tolerance, rtol=0)
    assert np.array_equal(single.argmax(-1), outputs["preds"])


def simplex_episodes(spread=0.8, **kwargs):
    episodes, labels = random_episodes(dim=5, spread=spread, with_labels=True, **kwargs)
    return episodes.with_features(lambda x: (3 * x).softmax(-1)), labels


def reference(support, labels, query, weight, iterations, steps, hard):
    """The card with its M-step written out, one episode, always `steps` steps."""
    ways = query.shape[-1]
    y, u, a = torch.eye(ways, dtype=torch.float64)[labels], query, torch.ones(ways, ways, dtype=torch.float64)
    log_s, log_q = (support + 1e-15).log(), (query + 1e-15).log()
    for _ in range(iterations):
        mean_log = (y.T @ log_s + u.T @ log_q) / (y.sum(0) + u.sum(0))[:, None]
        for _ in range(steps):
            psi = torch.digamma(a + 1)
            c = (2 * (-torch.lgamma(a + 1) + a * psi) / a**2).abs()
            b = psi - torch.digamma(a.sum(1, keepdim=True)) - c * a - mean_log
            a = (-b + (b**2 + 4 * c).sqrt()) / (2 * c)
        v = (u.mean(0) + 1e-15).log() + 1
        scores = torch.lgamma(a.sum(1)) - torch.lgamma(a).sum(1) + log_q @ (a - 1).T + weight * v
        u = torch.eye(ways, dtype=torch.float64)[scores.argmax(1)] if hard else scores.softmax(1)
    return scores.softmax(1), a


@pytest.mark.parametrize("name", ["em_dirichlet", "hard_em_dirichlet"])
def test_equals_a_plain_loop(name):
    episodes, _ = simplex_episodes(shots=2, queries=13)
    kept = [0, 1, 2, 3, 4, 6, 8]
    episodes = dataclasses.replace(episodes, support=episodes.support[:, kept],
                                   support_labels=episodes.support_labels[:, kept])
    found = create_method(name, iterations=4, k_eff=2, mm_steps=30).refine(episodes)
    for e in range(3):
        u, a = reference(episodes.support[e], episodes.support_labels[e], episodes.query[e], 5 // 2, 4, 30,
                         name.startswith("hard"))
        torch.testing.assert_close(found.logits[e].exp(), u, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.prototypes[e], a)


def test_prior_weight_needs_no_knowledge_by_default():
    episodes, _ = simplex_episodes()
    quick = {"iterations": 3, "mm_steps": 60}
    assert torch.equal(create_method("em_dirichlet", **quick)(episodes),
                       create_method("em_dirichlet", k_eff=5, **quick)(episodes))
    assert not torch.equal(create_method("em_dirichlet", **quick)(episodes),
                           create_method("em_dirichlet", k_eff=1, **quick)(episodes))
    with pytest.raises(FewshotError, match="exceeds ways=5"):
        create_method("em_dirichlet", k_eff=6)(episodes)


def test_convergence_is_reported():
    episodes, _ = simplex_episodes()
    few = create_method("em_dirichlet", iterations=2, mm_steps=60).refine(episodes)
    many = create_method("em_dirichlet", iterations=2, mm_steps=3000, mm_tolerance=1e-6).refine(episodes)
    assert not few.converged.any() and many.converged.all()
    assert few.iterations.tolist() == [2, 2, 2]


def test_single_precision_input_is_not_lost():
    """One shot and a class without queries let parameters grow; lnGamma in float32 would be off by whole logits."""
    episodes, _ = simplex_episodes(shots=1, spread=0.2)
    method = create_method("em_dirichlet", iterations=8)
    double, single = method.refine(episodes), method(episodes.to(torch.float32))
    assert double.prototypes.sum(-1).max() > 1e3, "the test should reach large parameters"
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.softmax(-1).double(), double.logits.softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["em_dirichlet", "hard_em_dirichlet"])
def test_zero_shot_ignores_the_support(name):
    episodes, labels = random_episodes(queries=30, dim=5, with_labels=True)
    noise = torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    rows = (3 * torch.eye(5, dtype=torch.float64)[labels] + noise).softmax(-1)
    episodes = dataclasses.replace(episodes, support=episodes.support.softmax(-1), query=rows)
    method = create_method(name, zero_shot=True, mm_steps=100)
    found = method.refine(episodes, history=True)
    assert (found.logits.argmax(-1) == labels).double().mean() > 0.9
    other = dataclasses.replace(episodes, support_labels=episodes.support_labels.flip(1),
                                support=torch.full_like(episodes.support, 0.2))
    assert torch.equal(method(other), found.logits)
    assert torch.equal(found.history[-1], found.prototypes)


def test_zero_shot_needs_class_probabilities():
    with pytest.raises(FewshotError, match="simplex"):
        create_method("em_dirichlet", zero_shot=True)(random_episodes())
    with pytest.raises(FewshotError, match="zero_shot"):
        create_method("em_dirichlet", zero_shot=True, simplex="prototypes")


def test_clusters_are_named_one_to_one():
    """Both clusters look most like class 0; the one-to-one matching gives the second one its second choice."""
    query = torch.tensor([[[0.9, 0.1, 0.0], [0.6, 0.0, 0.4]]], dtype=torch.float64)
    logits = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # cluster 1 wins query 0, cluster 2 wins query 1
    order = name_clusters(logits, torch.ones(1, 3, 3, dtype=torch.float64), query)
    assert order.tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("params", [{"iterations": 0}, {"mm_steps": 0}, {"k_eff": 0}, {"simplex": "softmax"}])
def test_wrong_parameters(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("em_dirichlet", **params)
