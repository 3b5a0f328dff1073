from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import check_no_texts, fitted, uneven_episodes

SETTINGS = {"steps": 30, "variant": "official"}
AGREEMENT = [("amu", {"uncertainty": "none", **SETTINGS}, "amu_none"), ("amu", SETTINGS, "amu_moment")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def zero_shot(e):
    return create_method("zero_shot")(e.with_features(lambda x: x[..., :8]))


def standardised(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


@pytest.mark.parametrize(("uncertainty", "variant", "reference"), [("none", "sane", None), ("kurtosis", "sane", 1.25),
                                                                   ("kurtosis", "official", 250)])
def test_against_a_loop(uncertainty, variant, reference):
    e = uneven_episodes(text_dim=8)
    settings = {"steps": 8, "learning_rate": 0.02, "weight_decay": 0.1, "epsilon": 1e-4}
    logits = create_method("amu", bias=0.7, fusion=0.4, uncertainty=uncertainty, variant=variant, text_scale=0.5, power=0.3,
                           **settings)(e)
    for i in range(len(e)):
        labels = e.support_labels[i]
        means = torch.stack([normalize(e.support[i][labels == n, 8:], dim=-1).mean(0) for n in range(5)])

        def answer(x, head, i=i):
            text = 0.5 * (20 * normalize(x[:, :8], dim=-1) @ normalize(e.text[i], dim=-1).T - 3)
            scores = standardised(normalize(x[:, 8:], dim=-1) @ head.T)
            kurtosis = standardised(text.softmax(1)).pow(4).mean(1, keepdim=True)
            return text + 0.7 * (1 if reference is None else (kurtosis / reference) ** -0.3) * scores, scores

        def loss(head, i=i, answer=answer, labels=labels):
            joined, scores = answer(e.support[i], head)
            return 0.4 * cross_entropy(joined, labels) + 0.6 * cross_entropy(scores, labels)

        torch.testing.assert_close(logits[i], answer(e.query[i], *fitted(loss, means, **settings))[0], atol=1e-9, rtol=0)


def test_without_bias_it_is_zero_shot():
    e = uneven_episodes(text_dim=8)
    torch.testing.assert_close(create_method("amu", bias=0.0, steps=5)(e), zero_shot(e))


def test_of_a_thousand_classes_the_official_reference_is_ours():
    e = random_episodes(episodes=1, ways=1000, shots=1, queries=5, dim=16, with_text=True, text_dim=8)
    found = {variant: create_method("amu", variant=variant, steps=0)(e) for variant in ("sane", "official")}
    torch.testing.assert_close(found["sane"], found["official"])
    assert not torch.allclose(found["sane"], create_method("amu", uncertainty="none", steps=0)(e))


def test_without_texts_it_is_a_head_on_the_auxiliary_channels():
    check_no_texts("amu", steps=10)
    e = uneven_episodes(text_dim=8)
    method = create_method("amu", text_scale=0.0, steps=5)
    changed = e.with_features(lambda x: torch.cat([x[..., :8] + 1, x[..., 8:]], -1))
    assert torch.equal(method(e), method(changed))


def test_what_is_refused():
    e = random_episodes(with_text=True)
    with pytest.raises(FewshotError, match=r"16 channels beside texts of 16 leave none .*fewshot join"):
        create_method("amu")(e)
    for params, message in (({"uncertainty": "entropy"}, "uncertainty"), ({"fusion": 1.5}, "fusion"),
                            ({"bias": -1.0}, "bias"), ({"variant": "paper"}, "variant"),
                            ({"text_scale": -1.0}, "text_scale")):
        with pytest.raises(FewshotError, match=message):
            create_method("amu", **params)
