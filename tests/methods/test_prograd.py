from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.methods.prograd import without_conflict
from tests.methods.trained_heads import check_no_texts, uneven_episodes, zero_shot_head


@pytest.mark.parametrize("conflict", [0.0, 0.6, 1.0])
def test_against_a_loop(conflict):
    e = uneven_episodes()
    logits = create_method("prograd", conflict=conflict, temperature=2.0, steps=12, learning_rate=0.3)(e)
    projected = 0
    for i in range(len(e)):
        points, labels = normalize(e.support[i], dim=-1), e.support_labels[i]
        head = [values.clone().requires_grad_() for values in zero_shot_head(e, i)]
        reference = torch.nn.functional.linear(points, *head).detach()
        for step in range(12):
            answer = torch.nn.functional.linear(points, *head)
            divergence = kl_div((answer / 2).log_softmax(1), (reference / 2).log_softmax(1), reduction="batchmean",
                                log_target=True)
            a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, head, retain_graph=True)])
                    for loss in (cross_entropy(answer, labels), divergence))
            if step and a @ b < 0:  # at the start b is 0, but for rounding errors
                projected += 1
                a = a - conflict * (a @ b) / (b @ b) * b
            rate = 5 * 0.3 * (1 + math.cos(math.pi * step / 12)) / 2
            with torch.no_grad():
                for values, gradient in zip(head, (a[:60].view(5, 12), a[60:]), strict=True):
                    values -= rate * gradient
        torch.testing.assert_close(logits[i], torch.nn.functional.linear(normalize(e.query[i], dim=-1), *head).detach(),
                                   atol=1e-9, rtol=0)
    assert projected > 0, "the rule was never needed"


def test_the_rule_leaves_no_conflict():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    inner = (a * b).sum((1, 2))
    found = without_conflict(a, b, 1.0)
    assert ((found * b).sum((1, 2)) >= -1e-12).all() and (inner < 0).any() and (inner > 0).any()
    assert torch.equal(found[inner > 0], a[inner > 0]) and torch.equal(without_conflict(a, b, 0.0), a)
    assert torch.equal(without_conflict(a, torch.zeros_like(b), 1.0), a)


def test_it_stays_nearer_to_zero_shot_than_without_the_rule():
    e = random_episodes(shots=4, spread=1.5, with_text=True)
    zero_shot = create_method("zero_shot")(e).log_softmax(-1)
    near, far = (kl_div(create_method("prograd", conflict=conflict)(e).log_softmax(-1), zero_shot, reduction="sum",
                        log_target=True) for conflict in (1.0, 0.0))
    assert 0 < near < far


def test_start_and_no_texts():
    e = uneven_episodes()
    torch.testing.assert_close(create_method("prograd", steps=0)(e), create_method("zero_shot")(e))
    check_no_texts("prograd")


@pytest.mark.parametrize(("params", "message"), [({"conflict": -1.0}, "conflict"), ({"temperature": 0.0}, "temperature"),
                                                 ({"steps": -1}, "steps")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("prograd", **params)
