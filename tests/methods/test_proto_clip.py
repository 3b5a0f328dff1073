from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.methods.bases.grid_search import search_grid
from tests.methods.agreement import check_soft
from tests.methods.test_gda import uneven_episodes

TRAINED = {"alpha": 0.5, "beta": 12.0, "trained": True, "steps": 30, "learning_rate": 1e-3, "variant": "official"}
AGREEMENT = [("proto_clip", {"alpha": 0.2, "beta": 12.0}, "vlm_proto_clip_a0.2_b12"),
             ("proto_clip", {"alpha": 0.5, "beta": 5.0}, "vlm_proto_clip_a0.5_b5"),
             ("proto_clip", TRAINED, "proto_clip_f")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def probabilities(query, images, texts, alpha, beta, text_scale):
    """[Q, N] one query and one class after the other."""
    image, text = (torch.stack([torch.stack([-beta * scale * (q - c).square().sum() for c in points]).softmax(0)
                                for q in query]) for points, scale in ((images, 1.0), (texts, text_scale)))
    return alpha * image + (1 - alpha) * text


def means(support, labels):
    return normalize(torch.stack([normalize(support[labels == n], dim=-1).mean(0) for n in range(3)]), dim=-1)


def test_against_a_loop():
    e = uneven_episodes()
    logits = create_method("proto_clip", alpha=0.3, beta=2.5, text_scale=0.5)(e)
    for i in range(len(e)):
        query, texts = normalize(e.query[i], dim=-1), normalize(e.text[i], dim=-1)
        expected = probabilities(query, means(e.support[i], e.support_labels[i]), texts, 0.3, 2.5, 0.5)
        assert torch.allclose(logits[i].exp(), expected, atol=1e-12, rtol=0)


def test_either_side_alone():
    e = uneven_episodes()
    text, image = (create_method("proto_clip", alpha=alpha)(e) for alpha in (0.0, 1.0))
    assert torch.equal(text.argsort(-1), create_method("zero_shot")(e).argsort(-1))
    distances = torch.cdist(normalize(e.query, dim=-1), torch.stack([means(*each) for each in zip(
        e.support, e.support_labels, strict=True)]))
    assert torch.equal(image.argmax(-1), distances.argmin(-1)) and not torch.equal(image.argmax(-1), text.argmax(-1))


@pytest.mark.parametrize("setting", [{}, {"variant": "official"}, {"train_text": False}, {"text_scale": 0.0},
                                     {"alpha": 0.0}])
def test_memories_are_trained_by_adamw(setting):
    """Against autograd, torch's AdamW and scheduler, an episode at a time."""
    e, steps, rate = uneven_episodes(), 6, 0.05
    values = {"alpha": 0.3, "beta": 2.5, "text_scale": 0.5, **setting}
    alpha, beta, text_scale = values["alpha"], values["beta"], values["text_scale"]
    with torch.no_grad():
        found = create_method("proto_clip", trained=True, steps=steps, learning_rate=rate, **values)(e)
    for i in range(len(e)):
        support, query = normalize(e.support[i], dim=-1), normalize(e.query[i], dim=-1)
        labels, start = e.support_labels[i], normalize(e.text[i], dim=-1)
        memory, texts = torch.nn.Parameter(support.clone()), torch.nn.Parameter(start.clone())

        def answer(points, memory=memory, texts=texts, labels=labels):
            unit = normalize(texts, dim=-1)
            return means(memory, labels), unit, probabilities(points, means(memory, labels), unit, alpha, beta, text_scale)

        trained = [memory] if "train_text" in setting else [memory, texts]
        adam = torch.optim.AdamW(trained, lr=rate, eps=1e-4, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps * (6 if "variant" in setting else 1))
        for _ in range(steps):
            images, unit, p = answer(support)
            loss = torch.nn.functional.nll_loss(p.log(), labels)
            if text_scale:
                alike = images @ unit.T / 0.1
                loss = loss + cross_entropy(alike, torch.arange(3)) + cross_entropy(alike.T, torch.arange(3))
            adam.zero_grad()
            loss.backward()
            for tensor in trained:
                tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            adam.step()
            schedule.step()
        assert torch.allclose(found[i].exp(), answer(query)[2], atol=1e-10, rtol=0)
        assert setting.get("alpha") == 0 or not torch.allclose(memory, support, atol=1e-2, rtol=0), "nothing was trained"


def test_untrained_memories_are_support_and_texts():
    e = uneven_episodes()
    assert torch.equal(create_method("proto_clip", trained=True, steps=0)(e), create_method("proto_clip")(e))


def test_values_while_training_may_differ():
    e = uneven_episodes()
    keys = {"trained": True, "steps": 5, "learning_rate": 0.05}
    other = create_method("proto_clip", alpha=0.9, beta=1.0, train_alpha=0.5, train_beta=12.0, **keys)
    same = create_method("proto_clip", alpha=0.5, beta=12.0, **keys)
    assert all(map(torch.equal, other.shared(e), same.shared(e)))
    assert other.reused == ("alpha", "beta") and same.reused == ()


def test_search_is_that_of_a_loop():
    e, labels = random_episodes(episodes=1, queries=60, with_text=True, with_labels=True, spread=2.0)
    grid = {"alpha": [0.0, 0.5, 1.0], "beta": [1.0, 20.0]}
    found = search_grid(create_method("proto_clip"), e, labels, grid)
    settings = [{"alpha": alpha, "beta": beta} for alpha in grid["alpha"] for beta in grid["beta"]]
    correct = [int((create_method("proto_clip", **each)(e).argmax(-1) == labels).sum()) for each in settings]
    assert found.values == settings[correct.index(max(correct))] and len(set(correct)) > 1


@pytest.mark.parametrize("params", [{"alpha": 1.1}, {"beta": 0.0}, {"steps": -1}, {"learning_rate": 0.0}, {"variant": "x"},
                                    {"train_alpha": -0.1}, {"text_scale": -1.0}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("proto_clip", **params)
