from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft

AGREEMENT = [("tip_adapter", {"alpha": 1.0, "beta": 5.5}, "vlm_tip_adapter_a1_b5.5"),
             ("tip_adapter", {"alpha": 3.0, "beta": 1.0}, "vlm_tip_adapter_a3_b1"),
             ("tip_adapter", {"alpha": 1.0, "beta": 5.5, "trained": True}, "tip_adapter_f")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def uneven_episodes():
    """Three episodes whose classes have 1, 2 and 3 shots."""
    e = random_episodes(ways=3, shots=3, queries=7, with_text=True).replace(logit_scale=7.0, logit_bias=-2.0)
    kept = torch.tensor([0, 1, 2, 4, 5, 8])
    return e.replace(support=e.support[:, kept], support_labels=e.support_labels[:, kept])


def unit(x):
    """Of length 1; zero stays zero."""
    return torch.nn.functional.normalize(x, dim=0)


def test_against_a_loop():
    e = uneven_episodes()
    logits = create_method("tip_adapter", alpha=1.7, beta=2.5, text_scale=0.5)(e)
    for i in range(len(e)):
        for q, query in enumerate(e.query[i]):
            expected = [0.5 * (7 * float(unit(query) @ unit(text)) - 2) for text in e.text[i]]
            for key, label in zip(e.support[i], e.support_labels[i].tolist(), strict=True):
                expected[label] += 1.7 * math.exp(-2.5 * (1 - float(unit(query) @ unit(key))))
            assert logits[i, q].tolist() == pytest.approx(expected, abs=1e-12)


def test_without_votes_it_is_zero_shot():
    e = uneven_episodes()
    assert torch.equal(create_method("tip_adapter", alpha=0.0)(e), create_method("zero_shot")(e))


def test_keys_are_trained_by_adamw_on_the_cross_entropy_of_the_support():
    """Against torch's AdamW and scheduler, an episode at a time."""
    e = uneven_episodes()
    steps, rate = 6, 0.05
    made = create_method("tip_adapter", alpha=1.7, beta=2.5, trained=True, steps=steps, learning_rate=rate)
    with torch.no_grad():
        found = made(e)
    for i in range(len(e)):
        support, labels = torch.nn.functional.normalize(e.support[i], dim=-1), e.support_labels[i]
        texts, query = (torch.nn.functional.normalize(x[i], dim=-1) for x in (e.text, e.query))
        keys = torch.nn.Parameter(support.clone())

        def logits(x, keys=keys, labels=labels, texts=texts):
            votes = torch.exp(-2.5 * (1 - x @ keys.T)) @ torch.nn.functional.one_hot(labels, 3).double()
            return 7 * x @ texts.T - 2 + 1.7 * votes

        adam = torch.optim.AdamW([keys], lr=rate, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(logits(support), labels).backward()
            adam.step()
            schedule.step()
        assert torch.allclose(found[i], logits(query), atol=1e-10)
        assert not torch.allclose(keys, support, atol=1e-2), "nothing was trained"


def test_untrained_keys_are_the_support():
    e = uneven_episodes()
    assert torch.equal(create_method("tip_adapter", trained=True, steps=0)(e), create_method("tip_adapter")(e))


def test_as_many_steps_as_the_official_program():
    e = random_episodes(episodes=1, ways=3, shots=90, queries=3, with_text=True)  # 270 items: two batches of 256
    default, counted = (create_method("tip_adapter", trained=True, steps=steps)(e) for steps in (None, 40))
    assert torch.equal(default, counted)


def test_values_while_training_may_differ():
    e = uneven_episodes()
    keys = {"trained": True, "steps": 5, "learning_rate": 0.05}
    other = create_method("tip_adapter", alpha=3.0, beta=0.5, train_alpha=1.0, train_beta=5.5, **keys)
    same = create_method("tip_adapter", alpha=1.0, beta=5.5, **keys)
    assert torch.equal(other.shared(e).distances, same.shared(e).distances)
    assert other.reused == ("alpha", "beta") and same.reused == ()


@pytest.mark.parametrize("params", [{"alpha": -1.0}, {"beta": -0.1}, {"steps": -1}, {"learning_rate": 0.0},
                                    {"train_alpha": -1.0}, {"text_scale": -1.0}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("tip_adapter", **params)
