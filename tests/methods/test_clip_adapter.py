from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.heads import uniform
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import fitted, uneven_episodes

AGREEMENT = [("clip_adapter", {"steps": 30}, "clip_adapter")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def test_against_a_loop():
    e = uneven_episodes()
    settings = {"steps": 8, "learning_rate": 0.02, "weight_decay": 0.1, "epsilon": 1e-4}
    logits = create_method("clip_adapter", ratio=0.3, reduction=3, text_scale=0.5, seed=2, **settings)(e)
    start = uniform((12, 4), 12**-0.5, 2, "down"), uniform((4, 12), 0.5, 2, "up")
    for i in range(len(e)):
        text = normalize(e.text[i], dim=-1)

        def answer(x, down, up, text=text):
            adapted = 0.3 * ((x @ down).relu() @ up).relu() + 0.7 * x  # of features as they come: lengths cancel
            return 0.5 * (20 * normalize(adapted, dim=-1) @ text.T - 3)

        learned = fitted(lambda *w, i=i, answer=answer: cross_entropy(answer(e.support[i], *w), e.support_labels[i]), *start,
                         **settings)
        torch.testing.assert_close(logits[i], answer(e.query[i], *learned), atol=1e-9, rtol=0)


def test_without_the_network_it_is_zero_shot():
    e = uneven_episodes()
    torch.testing.assert_close(create_method("clip_adapter", ratio=0.0, steps=0)(e), create_method("zero_shot")(e))
    torch.testing.assert_close(create_method("clip_adapter", ratio=0.0, steps=3)(e), create_method("zero_shot")(e))
    assert not torch.allclose(create_method("clip_adapter", steps=0)(e), create_method("zero_shot")(e))


@pytest.mark.parametrize(("params", "message"), [
    ({"ratio": 1.1}, "ratio=1.1"), ({"reduction": 0}, "reduction=0"), ({"text_scale": 0.0}, "text_scale"),
    ({"steps": -1}, "steps=-1"), ({"learning_rate": 0.0}, "learning_rate"), ({"weight_decay": -1.0}, "weight_decay")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("clip_adapter", **params)
