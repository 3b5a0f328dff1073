from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.logistic_regression import LogisticRegression
from fewshot.ops.distances import l2_normalise
from fewshot.ops.linear import fit_logistic
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("logistic_regression", {}, "rfs_lr")]


def test_agrees_with_official_code(oracles):
    """The official run stops at scikit-learn's default tolerance, so it is as far from us as from its own optimum."""
    for inputs in inputs_of(oracles, "rfs_lr"):
        outputs, description = load_outputs(oracles, "rfs_lr", inputs)
        notes = description["per_input"][inputs]
        for dtype in (torch.float64, torch.float32):
            episodes, _ = load_inputs(oracles, inputs, dtype)
            refinement = LogisticRegression().refine(episodes)
            assert refinement.converged.all() and refinement.iterations.max() <= 8
            found = refinement.logits.softmax(-1).numpy()
            # The stored optimum was found by L-BFGS, which cannot see differences of the objective below rounding.
            np.testing.assert_allclose(found[:4], outputs["probs_converged_lr"], atol=2e-7, rtol=0, err_msg=inputs)
            tolerance = notes["max_abs_diff_vs_converged"] + notes["tolerance_float32"]
            np.testing.assert_allclose(found, outputs["probs"], atol=tolerance, rtol=0, err_msg=inputs)
            top = np.sort(found, -1)
            clear = top[..., -1] - top[..., -2] > 2 * tolerance
            assert np.array_equal(found.argmax(-1)[clear], outputs["preds"][clear])


def gradient_norm(x, labels, model, e, C):
    """Of the objective as scikit-learn writes it, from the returned weights and intercept."""
    x, labels = x[e].numpy(), labels[e].numpy()
    weights, intercept = model.weights[e].numpy(), model.intercept[e].numpy()
    scores = x @ weights.T + intercept
    error = np.exp(scores - scores.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(x)), labels] -= 1
    return np.sqrt(((C * error.T @ x + weights) ** 2).sum() + (C * error.sum(0) ** 2).sum())


def unequal(ways, shots, dim, seed=0, normalised=True):
    """Class n has 1 + n mod `shots` points."""
    full = random_episodes(ways=ways, shots=shots, dim=dim, queries=20, seed=seed)
    full = full.with_features(l2_normalise) if normalised else full
    kept = torch.tensor([i for i in range(ways * shots) if i // ways <= int(full.support_labels[0, i]) % shots])
    return full.support[:, kept], full.support_labels[:, kept], full.query


@pytest.mark.parametrize(("ways", "shots", "dim", "C", "normalised"), [
    (5, 1, 64, 1.0, True), (5, 5, 64, 1.0, True), (3, 50, 16, 1.0, True), (20, 5, 32, 1.0, True),
    (5, 5, 64, 0.01, True), (5, 5, 64, 100.0, True), (5, 3, 64, 1.0, False), (4, 30, 16, 10.0, False)])
def test_finds_the_optimum_of_scikit_learn(ways, shots, dim, C, normalised):
    """Few and many points, hard and easy problems: our gradient is at the level of rounding."""
    x, labels, query = unequal(ways, shots, dim, normalised=normalised)
    model = fit_logistic(x, labels, ways, C=C)
    assert model.converged.all()
    for e in range(3):
        assert gradient_norm(x, labels, model, e, C) < 1e-11 * C * x[e].norm().item()
    official = sklearn.linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10000)
    official.fit(x[0].numpy(), labels[0].numpy())
    found = model(query)[0].softmax(-1).numpy()
    np.testing.assert_allclose(found, official.predict_proba(query[0].numpy()), atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.weights[0], official.coef_, atol=1e-5 * max(1, C), rtol=0)


def test_two_classes_are_the_sigmoid_model_with_twice_the_C():
    x, labels, query = unequal(2, 5, 16)
    official = sklearn.linear_model.LogisticRegression(C=2.0, tol=1e-10, max_iter=10000)
    official.fit(x[0].numpy(), labels[0].numpy())
    found = fit_logistic(x, labels, 2, C=1.0)(query)[0].softmax(-1)
    np.testing.assert_allclose(found, official.predict_proba(query[0].numpy()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("C", [1.0, 100.0])
def test_float32_reaches_the_optimum(C):
    """Also with two points that almost coincide but differ in class, which the span of the points barely resolves."""
    x, labels, query = unequal(5, 5, 64)
    x = x.clone()
    x[:, 1] = x[:, 0] + 1e-4 * x[:, 2]
    exact, single = fit_logistic(x, labels, 5, C=C), fit_logistic(x.float(), labels, 5, C=C)
    assert single.converged.all()
    torch.testing.assert_close(single(query.float()).double(), exact(query), atol=2e-5, rtol=0)


def test_what_float32_does_not_reach_is_solved_in_float64():
    """As with the large logits of a thousand ways. A second episode, solved at once, keeps its own answer."""
    episodes = random_episodes(episodes=2, shots=3, dim=20, dtype=torch.float32)
    support, labels = episodes.support.clone(), episodes.support_labels
    support[1] = support[1, :1]  # every point the same: the first gradient is nearly that of the optimum
    found = fit_logistic(support, labels, 5, tolerance=1e-10)
    exact = fit_logistic(support.double(), labels, 5, tolerance=1e-10)
    assert found.converged.all() and found.weights.dtype == torch.float32
    torch.testing.assert_close(found.weights, exact.weights.float(), atol=1e-6, rtol=0)


def test_episodes_stop_one_by_one():
    hard, easy = random_episodes(shots=5, spread=2.0), random_episodes(shots=5, spread=0.01)
    x = torch.cat([hard.support, easy.support])
    labels = torch.cat([hard.support_labels, easy.support_labels])
    both = fit_logistic(x, labels, 5)
    assert both.converged.all() and len(both.iterations.unique()) > 1
    alone = [fit_logistic(x[i:i + 1], labels[i:i + 1], 5) for i in range(6)]
    assert both.iterations.tolist() == [int(a.iterations) for a in alone]
    torch.testing.assert_close(both.weights, torch.cat([a.weights for a in alone]), atol=1e-10, rtol=0)


def test_too_few_iterations_are_reported():
    episodes = random_episodes(shots=5)
    refinement = LogisticRegression(max_iterations=2).refine(episodes)
    assert not refinement.converged.any() and refinement.iterations.tolist() == [2, 2, 2]
    assert torch.isfinite(refinement.logits).all()


def test_every_point_the_same_gives_the_class_frequencies():
    episodes = random_episodes(shots=2)
    labels = episodes.support_labels[:, :6]
    model = fit_logistic(episodes.support[:, :1].expand(-1, 6, -1).contiguous(), labels, 5)
    expected = torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64) / 6
    assert model.converged.all() and model.weights.abs().max() < 1e-12
    torch.testing.assert_close(model.intercept.softmax(-1), expected.expand(3, 5))


def test_translation_changes_the_intercept_only():
    episodes = random_episodes(shots=3)
    here, there = (fit_logistic(episodes.support + shift, episodes.support_labels, 5) for shift in (0, 10))
    torch.testing.assert_close(here.weights, there.weights, atol=1e-9, rtol=0)
    torch.testing.assert_close(here(episodes.query), there(episodes.query + 10), atol=1e-9, rtol=0)


def test_a_hundred_ways_of_many_shots():
    episodes = random_episodes(episodes=1, ways=100, shots=10, queries=200, dim=64, dtype=torch.float32)
    refinement = LogisticRegression().refine(episodes)
    assert refinement.converged.all()
    assert fit_logistic(episodes.support, episodes.support_labels, 100).weights.shape == (1, 100, 64)


@pytest.mark.parametrize("wrong", [{"C": 0}, {"norm": "l1"}, {"max_iterations": 0}, {"tolerance": 0.0}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        LogisticRegression(**wrong)
