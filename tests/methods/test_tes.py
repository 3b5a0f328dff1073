from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.heads import uniform
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import check_no_texts, fitted, uneven_episodes

AGREEMENT = [("tes", {"lambda_v": 0.2, "lambda_t": 0.4, "steps": 30}, "tes")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def unit_and_one(x):
    return torch.cat([normalize(x, dim=-1), torch.ones(len(x), 1, dtype=x.dtype)], 1)


@pytest.mark.parametrize("text_dim", [12, 5])
def test_against_a_loop(text_dim):
    e = uneven_episodes(text_dim=text_dim)
    settings = {"steps": 8, "learning_rate": 0.2, "weight_decay": 0.1}
    logits = create_method("tes", lambda_v=0.3, lambda_t=0.6, temperature=0.1, text_scale=0.5, seed=2, **settings)(e)
    start = torch.zeros(5, 13, dtype=torch.float64), uniform((13, text_dim), 1.0, 2, "projection")
    for i in range(len(e)):
        points, labels, text = unit_and_one(e.support[i]), e.support_labels[i], normalize(e.text[i], dim=-1)

        def loss(head, projection, points=points, labels=labels, text=text):
            said = normalize(points @ projection, dim=-1) @ text.T / 0.1
            target = 0.85 * one_hot(labels, 5).double() + 0.15 * said.detach().softmax(1)
            return cross_entropy(points @ head.T, target) + 0.3 * cross_entropy(said, labels)

        head, _ = fitted(loss, *start, **settings)
        torch.testing.assert_close(logits[i], unit_and_one(e.query[i]) @ head.T, atol=1e-9, rtol=0)


def test_without_teacher_it_is_a_linear_probe():
    e = uneven_episodes(text_dim=5)
    settings = {"steps": 8, "learning_rate": 0.2}
    logits = create_method("tes", lambda_v=0.0, lambda_t=0.0, **settings)(e)
    assert torch.equal(logits, create_method("tes", text_scale=0.0, **settings)(e))
    for i in range(len(e)):
        points = unit_and_one(e.support[i])
        head, = fitted(lambda head, points=points, i=i: cross_entropy(points @ head.T, e.support_labels[i]),
                       torch.zeros(5, 13, dtype=torch.float64), **settings)
        torch.testing.assert_close(logits[i], unit_and_one(e.query[i]) @ head.T, atol=1e-9, rtol=0)
    check_no_texts("tes", steps=20)


@pytest.mark.parametrize(("params", "message"), [
    ({"lambda_v": 1.1}, "lambda_v"), ({"lambda_t": -1.0}, "lambda_t"), ({"temperature": 0.0}, "temperature"),
    ({"lambda_v": 0.5, "text_scale": 3.0}, "more than all of a target")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("tes", **params)
