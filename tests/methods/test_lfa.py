from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.methods.bases.grid_search import search_grid
from fewshot.methods.lfa import rotation
from tests.methods.agreement import check_soft
from tests.methods.test_gda import uneven_episodes
from tests.oracle import inputs_of, load_inputs, load_outputs

PLAIN = {"batch": 1.0, "noise": 0.0, "dropout": 0.0}
AGREEMENT = [("lfa", {"beta": 0.0, "steps": 0}, "vlm_lfa_init_beta0"),
             ("lfa", {"beta": 0.85, "steps": 50, **PLAIN}, "lfa_refined")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def whole(episodes):
    """Rotations [E, D, D]."""
    basis, turn = rotation(episodes)
    return torch.eye(basis.shape[1], dtype=basis.dtype) + basis @ turn @ basis.mT


def test_agreement_on_what_is_determined_between_rotation_and_identity(oracles):
    """With fewer classes than channels the length of a mapped feature is not, but its products with texts are."""
    official, names = "vlm_lfa_init_beta0.85", inputs_of(oracles, "vlm_lfa_init_beta0.85")
    for name in names:
        outputs, description = load_outputs(oracles, official, name)
        e, _ = load_inputs(oracles, name)
        moved = normalize(e.query, dim=-1) @ (0.85 * torch.eye(256).double() + 0.15 * whole(e))
        np.testing.assert_allclose(moved @ normalize(e.text, dim=-1).mT, outputs["logits_unnormalised_f64"], rtol=0,
                                   atol=description["expected_agreement"]["float64"])
        logits = create_method("lfa", steps=0)(e)
        assert np.array_equal(logits.argmax(-1), outputs["preds"])


@pytest.mark.parametrize("dim", [16, 5, 3])  # a basis of 6, and all channels; the rotation is determined in the last case
def test_the_rotation_is_the_nearest_to_the_identity_of_the_best(dim):
    e = uneven_episodes(dim)
    turned, support, texts = whole(e), normalize(e.support, dim=-1), normalize(e.text, dim=-1)
    assert torch.allclose(turned @ turned.mT, torch.eye(dim).double().expand(3, dim, dim), atol=1e-12, rtol=0)
    for i in range(len(e)):
        product = support[i].T @ texts[i][e.support_labels[i]]
        # The sum of squared distances falls as this trace grows, which no rotation has above the sum of singular values.
        assert float((turned[i].T @ product).trace()) == pytest.approx(float(torch.linalg.svdvals(product).sum()))
        # Of all that reach it, the polar factor of the product plus a vanishing multiple of the identity is the nearest.
        left, _, right = torch.linalg.svd(product + 1e-7 * torch.eye(dim).double())
        assert torch.allclose(turned[i], left @ right, atol=1e-5, rtol=0)


def test_without_steps_against_a_loop():
    e = uneven_episodes()
    logits = create_method("lfa", beta=0.6, steps=0, text_scale=0.5)(e)
    for i, turned in enumerate(whole(e)):
        for q, query in enumerate(e.query[i]):
            moved = 0.6 * query + 0.4 * query @ turned
            for n, text in enumerate(e.text[i]):
                cosine = float(moved @ text) / (float(moved.norm()) * float(text.norm()))
                assert float(logits[i, q, n]) == pytest.approx(0.5 * (7 * cosine - 2), abs=1e-12)


def test_without_rotation_it_is_zero_shot():
    e = uneven_episodes()
    assert torch.allclose(create_method("lfa", beta=1.0, steps=0)(e), create_method("zero_shot")(e), atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [0, 3])
def test_other_classes_are_seen_through_the_map_of_the_support(steps):
    e = uneven_episodes()
    method = create_method("lfa", beta=0.6, steps=steps, **PLAIN)
    assert torch.allclose(method.transfer(e, e.query, e.text[:, [2, 0]]), method(e)[..., [2, 0]], atol=1e-12, rtol=0)
    mapped = method.transfer(e, e.query, e.text.roll(1, -1))
    plain = create_method("zero_shot").transfer(e, e.query, e.text.roll(1, -1))
    assert not torch.allclose(mapped, plain, atol=1e-2, rtol=0)


def test_the_map_is_refined_by_adamw_on_the_reranking_loss():
    """Against autograd, torch's AdamW and scheduler, an episode at a time."""
    e, steps, rate = uneven_episodes(), 6, 0.05
    found = create_method("lfa", beta=0.6, steps=steps, learning_rate=rate, weight_decay=0.1, neighbours=2, **PLAIN)(e)
    starts = 0.6 * torch.eye(16).double() + 0.4 * whole(e)
    for i in range(len(e)):
        support, texts, query = (normalize(x[i], dim=-1) for x in (e.support, e.text, e.query))
        made = torch.nn.Parameter(starts[i].clone())
        adam = torch.optim.AdamW([made], lr=rate, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-7)
        for _ in range(steps):
            losses = []
            for point, label in zip(normalize(support @ made, dim=-1), e.support_labels[i], strict=True):
                distances = (point - texts).norm(dim=-1)
                for n in distances.argsort()[:2]:
                    margin = (1 - texts[n] @ texts[label]) / 4
                    losses.append((distances[label] + margin - distances[n]).clamp_min(0))
            adam.zero_grad()
            torch.stack(losses).mean().backward()
            adam.step()
            schedule.step()
        assert torch.allclose(found[i], 7 * normalize(query @ made, dim=-1) @ texts.T - 2, atol=1e-9, rtol=0)
        assert not torch.allclose(made, starts[i], atol=1e-2, rtol=0), "nothing was trained"


def test_draws_of_a_step():
    support = torch.ones(2, 40, 1000)
    method = create_method("lfa", noise=0.5, dropout=0.2, batch=0.5)
    drawn = [method._drawn(support, step) for step in range(40)]
    seen = set()
    for rows, points in drawn:
        assert len(set(rows.tolist())) == 20 and points.shape == (2, 20, 1000) and torch.equal(points[0], points[1])
        dropped, noisy = bool((points == 0).any()), float(points[points != 0].std()) > 0.1
        seen.add((dropped, noisy))
        assert float(points.mean()) == pytest.approx(1, abs=0.03)  # dropout scales what it keeps
        if dropped:
            assert float((points == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
        elif noisy:
            assert float(points.std()) == pytest.approx(0.5, abs=0.02)
    assert seen == {(False, False), (False, True), (True, False), (True, True)}
    assert len({tuple(rows.tolist()) for rows, _ in drawn}) > 30
    assert torch.equal(method._drawn(support, 3)[1], drawn[3][1])
    assert not torch.equal(create_method("lfa", noise=0.5, seed=1)._drawn(support, 3)[0], drawn[3][0])


def test_search_is_that_of_a_loop():
    e, labels = random_episodes(episodes=1, queries=60, with_text=True, with_labels=True, spread=2.0)
    betas = torch.linspace(0, 1, 25).tolist()
    method = create_method("lfa", steps=0)
    found = search_grid(method, e, labels, {"beta": betas})
    correct = [int((create_method("lfa", beta=beta, steps=0)(e).argmax(-1) == labels).sum()) for beta in betas]
    assert found.values == {"beta": betas[correct.index(max(correct))]} and len(set(correct)) > 1
    assert method.reused == ("beta",) and create_method("lfa").reused == ()


@pytest.mark.parametrize("params", [{"beta": 1.1}, {"batch": 0.0}, {"dropout": 1.0}, {"noise": -1.0}, {"steps": -1},
                                    {"neighbours": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"text_scale": 0.0}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("lfa", **params)
