from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, layer_norm, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from tests.methods.agreement import check_soft

AGREEMENT = [("vdt", {"variant": "official", "steps": 30}, "vdt")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def uneven() -> Episodes:
    """Classes with 2 to 3 shots and 2 or 3 sentences."""
    e = random_episodes(episodes=2, shots=3, queries=7, dim=12, with_text=True)
    prompts = torch.cat([e.prompts, e.prompts[:, :, :1].roll(1, -1)], 2)
    prompts[:, 1, 2] = 0
    return e.replace(support=e.support[:, 1:], support_labels=e.support_labels[:, 1:], prompts=prompts, logit_scale=20.0,
                     logit_bias=-3.0)


@pytest.mark.parametrize("variant", ["sane", "official"])
def test_against_a_loop(variant):
    e = uneven()
    settings = {"variant": variant, "ratio": 0.4, "reduction": 3, "seed": 2, "text_scale": 0.5, "epsilon": 1e-4}
    method = create_method("vdt", steps=6, learning_rate=0.02, weight_decay=0.1, **settings)
    found, start = method(e), method._start(e)
    for i in range(2):
        w = {name: value[i].clone().requires_grad_() for name, value in start.items()}

        def answer(points, w=w, i=i):
            texts = []
            for sentences in e.prompts[i]:
                x = torch.stack([sentence for sentence in sentences if sentence.any()])
                weights = ((x @ w["query"]) @ (x @ w["key"]).T / 4**0.5).softmax(-1)
                mixed = 0.4 * (weights @ (x @ w["value"]) @ w["out"] + w["bias"]) + 0.6 * x
                if variant == "official":
                    mixed = layer_norm(2 * mixed, (12,), w["gain"][0], w["shift"][0])
                texts.append(mixed.mean(0))
            return 0.5 * (20 * normalize(points, dim=-1) @ normalize(torch.stack(texts), dim=-1).T - 3)

        optimiser = torch.optim.AdamW(w.values(), 0.02, eps=1e-4, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
        for _ in range(6):
            optimiser.zero_grad()
            cross_entropy(answer(e.support[i]), e.support_labels[i]).backward()
            optimiser.step()
            schedule.step()
        torch.testing.assert_close(found[i], answer(e.query[i]).detach(), atol=1e-9, rtol=0)


def test_untrained_or_without_attention_it_is_the_average_of_the_sentences():
    e = random_episodes(with_text=True)
    average = create_method("zero_shot")(e.replace(text=e.prompts.mean(2)))
    for settings in ({"steps": 0}, {"ratio": 0.0, "steps": 3}):
        torch.testing.assert_close(create_method("vdt", **settings)(e), average)
    trained = create_method("vdt", steps=3)
    assert not torch.allclose(trained(e), average)


def test_training_fits_the_support():
    e, labels = random_episodes(shots=5, queries=25, spread=0.3, with_labels=True, with_text=True)
    noise = torch.randn(e.prompts.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    e = e.replace(prompts=e.prompts + 0.3 * noise)
    losses = [cross_entropy(create_method("vdt", ratio=0.5, steps=steps)(e).flatten(0, 1), labels.flatten())
              for steps in (0, 30)]
    assert losses[1] < losses[0]


def test_new_classes_have_their_text_for_a_sentence():
    e = random_episodes(with_text=True)
    method = create_method("vdt", steps=3)
    one = e.replace(prompts=e.prompts[:, :, :1])  # then text and sentence are the same
    assert method.transfer(e, e.query[:, :4], e.text[:, :3]).shape == (3, 4, 3)
    torch.testing.assert_close(method.transfer(one, e.query, one.prompts[:, :, 0]), method(one))
    with torch.inference_mode():
        torch.testing.assert_close(method.transfer(one, e.query, one.prompts[:, :, 0]), method(one))


@pytest.mark.parametrize(("wrong", "says"), [
    ({"ratio": 1.1}, "ratio"), ({"reduction": 0}, "reduction"), ({"text_scale": 0.0}, "text_scale"),
    ({"steps": -1}, "steps"), ({"learning_rate": 0.0}, "learning_rate"), ({"variant": "other"}, "variant")])
def test_wrong_values(wrong, says):
    with pytest.raises(FewshotError, match=says):
        create_method("vdt", **wrong)
