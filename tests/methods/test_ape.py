from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.test_tip_adapter import uneven_episodes, unit
from tests.oracle import inputs_of, load_inputs, load_outputs

FIRST = {"alpha": 2.0, "beta": 4.0, "gamma": 0.2, "channels": 128}
SECOND = {"alpha": 1.2, "beta": 2.5, "gamma": 0.1, "channels": 180, "weights": (0.7, 0.3)}
TRAINED = {"alpha": 2.0, "beta": 4.0, "channels": 128, "weights": (0.2, 0.8), "trained": True, "variant": "official"}
AGREEMENT = [("ape", FIRST, "vlm_ape"), ("ape", SECOND, "vlm_ape_w0.7_0.3"), ("ape", TRAINED, "ape_t")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT[:2])
def test_the_channels_are_the_official_ones(oracles, name, params, official):
    for inputs in inputs_of(oracles, official):
        outputs, _ = load_outputs(oracles, official, inputs)
        found = create_method(name, **params).chosen_channels(load_inputs(oracles, inputs)[0])
        assert np.array_equal(found, outputs["channels"])


def chosen(support, labels, texts, weights, count):
    """Channels of an episode by the definition: a loop over pairs of items of different classes."""
    items = [(n, unit(text)) for n, text in enumerate(texts)]
    items += [(label, unit(x)) for x, label in zip(support, labels.tolist(), strict=True)]
    products = [x * y for (a, x), (b, y) in itertools.product(items, items) if a != b]
    criterion = -weights[0] * torch.stack(products).mean(0) + weights[1] * torch.stack([unit(t) for t in texts]).var(0)
    return criterion.argsort(descending=True)[:count]


def test_against_a_loop():
    e = uneven_episodes()
    params = {"alpha": 1.7, "beta": 2.5, "gamma": 0.3, "channels": 6, "weights": (0.6, 0.4)}
    logits = create_method("ape", **params)(e)
    zero_shot = create_method("zero_shot")(e)
    for i in range(len(e)):
        kept = chosen(e.support[i], e.support_labels[i], e.text[i], (0.6, 0.4), 6)
        texts = torch.stack([unit(unit(text)[kept]) for text in e.text[i]])
        for q, query in enumerate(e.query[i]):
            expected = zero_shot[i, q].tolist()
            for x, label in zip(e.support[i], e.support_labels[i].tolist(), strict=True):
                key = unit(unit(x)[kept])
                p = float((texts @ key).softmax(0)[label])
                weight = math.exp(0.3 * math.log2((1 + 1e-6) / (p + 1e-6)))
                expected[label] += 1.7 * math.exp(-2.5 * (1 - float(unit(unit(query)[kept]) @ key))) * weight
            assert logits[i, q].tolist() == pytest.approx(expected, abs=1e-11)


def test_with_all_channels_and_equal_weights_it_is_tip_adapter():
    e = uneven_episodes()
    found = create_method("ape", alpha=1.7, beta=2.5, gamma=0.0, channels=16)(e)
    assert torch.allclose(found, create_method("tip_adapter", alpha=1.7, beta=2.5)(e), atol=1e-12)


def test_without_texts_other_texts_change_nothing():
    e = uneven_episodes()
    other = e.replace(text=e.text.flip(1) + 0.3)
    for trained in (False, True):
        made = create_method("ape", text_scale=0.0, trained=trained, steps=3)
        assert torch.equal(made(e), made(other))


def test_untrained_it_is_the_form_without_training():
    e = uneven_episodes()
    params = {"alpha": 1.7, "beta": 2.5, "gamma": 0.3}
    found = create_method("ape", trained=True, steps=0, **params)(e)
    assert torch.allclose(found, create_method("ape", **params)(e), atol=1e-13)


def test_the_untrained_official_variant_is_tip_adapter():
    """It neither compares on the chosen channels nor weights the support."""
    e = uneven_episodes()
    found = create_method("ape", alpha=1.7, beta=2.5, trained=True, steps=0, variant="official")(e)
    assert torch.allclose(found, create_method("tip_adapter", alpha=1.7, beta=2.5)(e), atol=1e-13)


@pytest.mark.parametrize("variant", ["sane", "official"])
def test_residuals_and_weights_are_trained_by_adamw_on_the_cross_entropy_of_the_support(variant):
    """Against torch's AdamW and scheduler, an episode at a time."""
    e = uneven_episodes()
    steps, rate, official = 6, 0.05, variant == "official"
    made = create_method("ape", alpha=1.7, beta=2.5, gamma=0.3, trained=True, steps=steps, learning_rate=rate,
                         variant=variant)
    with torch.no_grad():
        found = made(e)
    normalise = torch.nn.functional.normalize
    for i, kept in enumerate(made.chosen_channels(e)):
        support, query, texts = (normalise(x[i], dim=-1) for x in (e.support, e.query, e.text))
        labels = e.support_labels[i]
        residual = torch.nn.Parameter(torch.zeros(3, len(kept), dtype=torch.float64))
        key_logits = normalise(support[:, kept], dim=-1) @ normalise(texts[:, kept], dim=-1).T
        p = key_logits.softmax(1)[torch.arange(len(labels)), labels]
        surprise = torch.zeros_like(p) if official else torch.log2((1 + 1e-6) / (p + 1e-6))
        weights = torch.nn.Parameter((0.3 * surprise).exp())

        def logits(x, i=i, kept=kept, support=support, texts=texts, labels=labels, residual=residual, weights=weights):
            padded = torch.zeros(3, 16, dtype=torch.float64).index_copy(1, kept, residual)
            if official:
                affinity = x @ (support + padded[labels]).T
            else:
                affinity = normalise(x[:, kept], dim=-1) @ (normalise(support[:, kept], dim=-1) + residual[labels]).T
            votes = (torch.exp(-2.5 * (1 - affinity)) * weights) @ torch.nn.functional.one_hot(labels, 3).double()
            return 7 * x @ (texts + padded).T - 2 + 1.7 * votes

        adam = torch.optim.AdamW([residual, weights], lr=rate, eps=1e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(logits(support), labels).backward()
            adam.step()
            schedule.step()
        assert torch.allclose(found[i], logits(query), atol=1e-10)
        assert float(residual.detach().abs().max()) > 1e-2, "nothing was trained"


@pytest.mark.parametrize(("params", "message"), [
    ({"alpha": -1.0}, "alpha"), ({"channels": 0}, "channels=0"), ({"weights": (1.0,)}, "two numbers"),
    ({"weights": (-0.5, 1.5)}, "two numbers"), ({"variant": "x"}, "sane, official"),
])
def test_refuses_what_makes_no_sense(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("ape", **params)


def test_refuses_more_channels_than_there_are():
    with pytest.raises(FewshotError, match="channels=17 of features of 16"):
        create_method("ape", channels=17)(random_episodes(with_text=True))
