from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, normalize

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import fitted, uneven_episodes

AGREEMENT = [("multi_modal_adapter", {"steps": 30, "variant": "official"}, "multi_modal_adapter")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def layer(x, weights):
    return x @ weights[:-1] + weights[-1]


def adapted(sequence, values, heads, across):
    """The N texts and the image [N + 1, D], each after it has looked at all of them."""
    few = layer(layer(sequence, values["in"]), values["down"])
    kinds = torch.arange(len(few)) == len(few) - 1
    bonus = across * (kinds[:, None] != kinds).double()
    heard = []
    for q, k, v in zip(*(layer(few, values[name]).chunk(heads, 1) for name in ("query", "key", "value")), strict=True):
        heard.append((q @ k.T / q.shape[1] ** 0.5 + bonus).softmax(1) @ v)
    return layer(gelu(layer(layer(torch.cat(heard, 1), values["join"]), values["narrow"])), values["up"])


@pytest.mark.parametrize("variant", ["sane", "official"])
def test_against_a_loop(variant):
    e = uneven_episodes()
    settings = {"steps": 3, "learning_rate": 0.02, "weight_decay": 0.1, "epsilon": 1e-4}
    method = create_method("multi_modal_adapter", ratio=0.3, across=0.7, heads=2, reduction=3, bottleneck=5, text_scale=0.5,
                           seed=2, variant=variant, **settings)
    e = e[:2]
    logits, start = method(e), method._start(e.support)
    for i in range(len(e)):
        text = normalize(e.text[i], dim=-1)

        def answer(points, *layers, text=text, names=tuple(start)):
            rows, values = [], dict(zip(names, layers, strict=True))
            for x in normalize(points, dim=-1):
                sequence = torch.cat([text, x[None]])
                added = adapted(sequence, values, 2, 0.7)
                added = normalize(added, dim=-1) if variant == "official" else added
                moved = normalize(0.3 * added + 0.7 * sequence, dim=-1)
                rows.append(0.5 * (20 * moved[:-1] @ moved[-1] - 3))
            return torch.stack(rows)

        learned = fitted(lambda *w, i=i, answer=answer: cross_entropy(answer(e.support[i], *w), e.support_labels[i]),
                         *(values[i] for values in start.values()), **settings)
        torch.testing.assert_close(logits[i], answer(e.query[i], *learned), atol=1e-9, rtol=0)


@pytest.mark.parametrize("params", [{"steps": 0}, {"ratio": 0.0, "steps": 3},
                                    {"ratio": 0.0, "steps": 3, "variant": "official"}])
def test_without_the_adapter_it_is_zero_shot(params):
    e = uneven_episodes()
    torch.testing.assert_close(create_method("multi_modal_adapter", **params)(e), create_method("zero_shot")(e))


def test_other_classes_pass_through_the_same_adapter():
    e = uneven_episodes()
    method = create_method("multi_modal_adapter", steps=5)
    with torch.inference_mode():
        torch.testing.assert_close(method.transfer(e, e.query, e.text), method(e))
    among_three = method.transfer(e, e.query, e.text[:, :3])
    assert among_three.shape == (3, 7, 3)
    assert not torch.allclose(among_three, create_method("zero_shot").transfer(e, e.query, e.text[:, :3]), atol=1e-3)


@pytest.mark.parametrize(("params", "message"), [
    ({"ratio": 1.1}, "ratio=1.1"), ({"heads": 0}, "heads=0"), ({"bottleneck": 0}, "bottleneck=0"),
    ({"text_scale": 0.0}, "text_scale"), ({"steps": -1}, "steps=-1"), ({"variant": "paper"}, "variant")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("multi_modal_adapter", **params)
