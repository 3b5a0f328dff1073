from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import check_no_texts, fitted, uneven_episodes

OFFICIAL = {"steps": 30, "weight_decay": 1e-4, "epsilon": 1e-10}  # 1e-3, 1e-2, 1e-8 for a head that is multiplied by 100
AGREEMENT = [("cross_modal", OFFICIAL, "cross_modal"), ("cross_modal", {"alpha": 0.5, **OFFICIAL}, "cross_modal_wise_ft")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def few_prompts():
    """Class 1 has one prompt, the others two."""
    e = uneven_episodes()
    prompts = e.prompts.clone()
    prompts[:, 1, 1] = 0
    return e.replace(prompts=prompts)


@pytest.mark.parametrize("initial", ["text", "zero"])
@pytest.mark.parametrize("prompts", [False, True])
def test_against_a_loop(initial, prompts):
    e = few_prompts() if prompts else uneven_episodes().replace(prompts=None)
    settings = {"steps": 8, "learning_rate": 0.2, "weight_decay": 0.01}
    logits = create_method("cross_modal", text_weight=0.3, alpha=0.8, initial=initial, text_scale=0.5, **settings)(e)
    for i in range(len(e)):
        sentences = [(x, n) for n in range(5) for x in e.prompts[i, n] if x.any()] if prompts else [
            (x, n) for n, x in enumerate(e.text[i])]
        texts, classes = torch.stack([x for x, _ in sentences]), torch.tensor([n for _, n in sentences])
        assert len(texts) == (9 if prompts else 5)
        zero_shot = 10 * normalize(e.text[i], dim=-1)  # 0.5 times a scale of 20

        def loss(head, i=i, texts=texts, classes=classes):
            images = cross_entropy(normalize(e.support[i], dim=-1) @ head.T, e.support_labels[i])
            return 0.85 * images + 0.15 * cross_entropy(normalize(texts, dim=-1) @ head.T, classes)

        head, = fitted(loss, zero_shot if initial == "text" else torch.zeros_like(zero_shot), **settings)
        found = normalize(e.query[i], dim=-1) @ (0.8 * head + 0.2 * zero_shot).T
        torch.testing.assert_close(logits[i].log_softmax(1), found.log_softmax(1), atol=1e-9, rtol=0)


def test_it_starts_from_zero_shot_and_returns_there():
    e = uneven_episodes()
    for params in ({"steps": 0}, {"alpha": 0.0, "steps": 5}):
        torch.testing.assert_close(create_method("cross_modal", **params)(e), create_method("zero_shot")(e))


def test_without_texts():
    check_no_texts("cross_modal")
    e = uneven_episodes()
    assert torch.equal(create_method("cross_modal", text_scale=0.0)(e),
                       create_method("cross_modal", text_scale=0.0, initial="zero", text_weight=0.0)(e))


@pytest.mark.parametrize(("params", "message"), [
    ({"text_weight": 1.5}, "text_weight"), ({"alpha": -0.1}, "alpha"), ({"initial": "random"}, "initial"),
    ({"epsilon": -1.0}, "epsilon")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("cross_modal", **params)
