from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("opta", {"variant": "official"}, "opta_lr")]


def standardise(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True)


def test_agrees_with_official_code(oracles):
    """Prototypes through their inner products with the queries, which the span keeps; probabilities against the same
    classifier solved to convergence (scikit-learn's default tolerance in the official run leaves errors up to 3e-3)."""
    method = create_method(AGREEMENT[0][0], **AGREEMENT[0][1])
    for inputs in inputs_of(oracles, "opta_lr"):
        outputs, description = load_outputs(oracles, "opta_lr", inputs)
        episodes, raw = load_inputs(oracles, inputs)
        found = method.refine(episodes[:4])
        assert found.converged.all()
        expected = outputs["prototypes"].astype(np.float64)
        np.testing.assert_allclose(gram(found.prototypes.numpy()), gram(expected), atol=1e-7 * gram(expected).max())
        np.testing.assert_allclose(found.logits.softmax(-1).numpy(), outputs["probs_converged_lr"], atol=5e-6)
        single = method(load_inputs(oracles, inputs, torch.float32)[0]).softmax(-1).numpy()
        tolerance = description["per_input"][inputs]["tolerance_float32"]
        off = description["per_input"][inputs]["max_abs_diff_vs_converged"]
        np.testing.assert_allclose(single[:4], outputs["probs_converged_lr"], atol=tolerance)
        top = np.sort(outputs["probs"], axis=-1)
        clear = top[..., -1] - top[..., -2] > 2 * (tolerance + off)
        assert clear.mean() > 0.9 and np.array_equal(single.argmax(-1)[clear], outputs["preds"][clear])


def gram(x):
    return x @ x.swapaxes(-1, -2)


@pytest.mark.parametrize("shots", [1, 5])
def test_converged_variant_stays_near_the_official_one(oracles, shots):
    episodes, raw = load_inputs(oracles, f"caltech_5w{shots}s_balanced")
    sane, official = (create_method("opta", variant=v).refine(episodes) for v in ("converged", "official"))
    assert sane.converged.all() and torch.equal(sane.logits.argmax(-1), official.logits.argmax(-1))
    torch.testing.assert_close(sane.logits.softmax(-1), official.logits.softmax(-1), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("shots", "passes", "keep"), [(1, 5, 0.0), (5, 1, 0.3)])
def test_equals_a_plain_loop_with_scikit_learn(shots, passes, keep):
    episodes = random_episodes(episodes=1, shots=shots, queries=17, dim=60)
    found = create_method("opta")(episodes).softmax(-1)
    for e in range(1):
        support, query = standardise(episodes.support[e].numpy()), standardise(episodes.query[e].numpy())
        y = np.eye(5)[episodes.support_labels[e].numpy()]
        first = w = y.T @ support / y.sum(0)[:, None]
        for _ in range(passes):
            cost = ((query[:, None] - w[None]) ** 2).sum(-1)
            plan = ot.bregman.sinkhorn_log(np.full(17, 1 / 17), np.full(5, 1 / 5), cost / cost.max(), 0.05,
                                           stopThr=1e-12, numItermax=100_000)
            w = plan.T @ query / plan.sum(0)[:, None]
        head = LogisticRegression(tol=1e-10, max_iter=10_000).fit((1 - keep) * w + keep * first, np.arange(5))
        np.testing.assert_allclose(found[e].numpy(), head.predict_proba(query), atol=1e-6)


def test_prior_of_zero_keeps_the_prototype_and_constant_rows_are_harmless():
    episodes = random_episodes(queries=12)
    query = episodes.query.clone()
    query[:, 0] = 3.3
    episodes = type(episodes)(episodes.support, episodes.support_labels, query, 5)
    for variant in ("converged", "official"):
        found = create_method("opta", query_prior=(1, 1, 1, 1, 0), variant=variant, passes=2, keep=0.0).refine(episodes)
        assert torch.isfinite(found.logits).all()
    start = create_method("opta", passes=0, keep=0.0).refine(episodes).prototypes
    kept = create_method("opta", query_prior=(1, 1, 1, 1, 0), passes=2, keep=0.0).refine(episodes).prototypes
    torch.testing.assert_close(kept[:, 4], start[:, 4])
    assert (kept[:, :4] - start[:, :4]).abs().max() > 0.1


def test_wrong_parameters_are_named():
    for params in ({"variant": "fast"}, {"keep": 1.5}):
        with pytest.raises(FewshotError, match=next(iter(params))):
            create_method("opta", **params)
