from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from fewshot.methods import create_method
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network, replaced


def test_equal_rates_are_maml():
    episodes, labels = image_episodes()
    meta_sgd, maml = (create_method(name, inner_lr=0.3, inner_steps=2).with_backbone(network(), 3).train()
                      for name in ("meta_sgd", "maml"))
    loss, found = loss_and_gradients(meta_sgd, episodes, labels)
    expected_loss, expected = loss_and_gradients(maml, episodes, labels)
    torch.testing.assert_close(loss, expected_loss, atol=1e-13, rtol=0)
    torch.testing.assert_close({name: found[name] for name in expected}, expected, atol=1e-12, rtol=0)
    assert [rate.shape for rate in meta_sgd.rates] == [p.shape for p in maml.parameters()]


def test_gradient_of_the_rates():
    """With one step it is - grad L_support * grad L_query(adapted), elementwise; first order does not change that."""
    episodes, labels = image_episodes(episodes=1)
    learner = create_method("meta_sgd", inner_lr=0.3).with_backbone(network(), 3).train()
    _, found = loss_and_gradients(learner, episodes, labels)

    def gradient(at, images, labels):
        logits = at.trajectory(replaced(episodes, query=images), {0})[0, 0]
        return torch.autograd.grad(F.cross_entropy(logits, labels), [at._weights()[name] for name in learner.adapted])

    inner = gradient(learner, episodes.support, episodes.support_labels[0])
    adapted = copy.deepcopy(learner)
    with torch.no_grad():
        for name, step in zip(learner.adapted, inner, strict=True):
            adapted._weights()[name] -= 0.3 * step
    outer = gradient(adapted, episodes.query, labels[0])
    for i, (a, b) in enumerate(zip(inner, outer, strict=True)):
        torch.testing.assert_close(found[f"rates.{i}"], -a * b, atol=1e-12, rtol=0)
    first = create_method("meta_sgd", inner_lr=0.3, first_order=True).with_backbone(network(), 3).train()
    _, other = loss_and_gradients(first, episodes, labels)
    torch.testing.assert_close(other["rates.0"], found["rates.0"], atol=1e-12, rtol=0)
    assert (other["backbone.layers.0.weight"] - found["backbone.layers.0.weight"]).abs().max() > 1e-4
