from __future__ import annotations

import torch

from fewshot.methods import create_method
from tests.methods.image_episodes import Identity, image_episodes, loss_and_gradients, network


def test_with_an_identity_body_it_is_maml():
    episodes, labels = image_episodes()
    found = [loss_and_gradients(create_method(name, inner_lr=0.3, inner_steps=3).with_backbone(Identity(), 3).double()
                                .train(), episodes, labels) for name in ("anil", "maml")]
    assert set(found[0][1]) == {"head.weight", "head.bias"}
    torch.testing.assert_close(found[0], found[1], atol=1e-13, rtol=0)


def test_the_body_is_learned_but_not_adapted():
    """As Meta-SGD with rates of zero for the body, which computes the features anew in every step."""
    episodes, labels = image_episodes()
    anil = create_method("anil", inner_lr=0.3, inner_steps=3).with_backbone(network(), 3).train()
    other = create_method("meta_sgd", inner_lr=0.3, inner_steps=3).with_backbone(network(), 3).train()
    with torch.no_grad():
        for name, rate in zip(other.adapted, other.rates, strict=True):
            rate.fill_(0.3 if name.startswith("head") else 0.0)
    loss, found = loss_and_gradients(anil, episodes, labels)
    expected_loss, expected = loss_and_gradients(other, episodes, labels)
    assert anil.adapted == ["head.weight", "head.bias"]
    torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, {name: expected[name] for name in found}, atol=1e-12, rtol=0)
    assert found["backbone.layers.0.weight"].abs().max() > 1e-4


def test_the_backbone_runs_once_for_each_image():
    episodes, _ = image_episodes()
    anil = create_method("anil", inner_steps=4, vectorise=False).with_backbone(network(), 3)
    seen = []
    anil.backbone.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(inputs[0])))
    anil(episodes)
    assert seen == [6, 7] * 3
