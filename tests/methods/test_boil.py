from __future__ import annotations

import torch

from fewshot.methods import create_method
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network


def test_the_head_is_learned_but_not_adapted():
    """As Meta-SGD with rates of zero for the head."""
    episodes, labels = image_episodes()
    boil = create_method("boil", inner_lr=0.3, inner_steps=3).with_backbone(network(), 3).train()
    other = create_method("meta_sgd", inner_lr=0.3, inner_steps=3).with_backbone(network(), 3).train()
    with torch.no_grad():
        for name, rate in zip(other.adapted, other.rates, strict=True):
            rate.fill_(0.0 if name.startswith("head") else 0.3)
    loss, found = loss_and_gradients(boil, episodes, labels)
    expected_loss, expected = loss_and_gradients(other, episodes, labels)
    assert boil.adapted and not any(name.startswith("head") for name in boil.adapted)
    torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, {name: expected[name] for name in found}, atol=1e-12, rtol=0)
    assert found["head.weight"].abs().max() > 1e-4


def test_it_adapts_more_than_the_head_could():
    episodes, _ = image_episodes()
    every = create_method("boil", inner_lr=0.3, inner_steps=3).with_backbone(network(), 3).eval().trajectory(episodes)
    assert (every[-1] - every[0]).abs().amax((1, 2)).min() > 1e-2
