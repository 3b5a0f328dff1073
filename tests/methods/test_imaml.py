from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.image_episodes import Identity, image_episodes, loss_and_gradients, network


def learner(backbone=None, **settings):
    settings = {"inner_lr": 0.1, "inner_steps": 3, "conjugate_steps": 200, **settings}
    return create_method("imaml", **settings).with_backbone(backbone or network(), 3).double().train()


def exact(made, episodes, labels, adapted) -> tuple[Tensor, dict[str, Tensor]]:
    """(query loss, its implicit gradient by name) at the weights `adapted`, from dense Hessians."""
    whole = nn.Sequential(made.backbone, made.head)
    names = [name.replace("backbone", "0").replace("head", "1") for name in made.adapted]
    shapes = [adapted[name].shape[1:] for name in made.adapted]
    losses, slopes = [], []
    for i in range(len(episodes)):
        def loss(flat, images, target):
            parts = flat.split([shape.numel() for shape in shapes])
            weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return nn.functional.cross_entropy(functional_call(whole, weights, (images,)), target)

        w = torch.cat([adapted[name][i].detach().flatten() for name in made.adapted]).requires_grad_()
        support = functools.partial(loss, images=episodes.support[i], target=episodes.support_labels[i])
        hessian = torch.autograd.functional.hessian(support, w.detach())
        value = loss(w, episodes.query[i], labels[i])
        slope, = torch.autograd.grad(value, w)
        identity = torch.eye(len(w), dtype=w.dtype)
        slopes.append(torch.linalg.solve(identity + hessian / made.settings.strength, slope))
        losses.append(value.detach())
    found = torch.stack(slopes).mean(0).split([shape.numel() for shape in shapes])
    return torch.stack(losses).mean(), {name: part.view(shape)
                                        for name, part, shape in zip(made.adapted, found, shapes, strict=True)}


@pytest.mark.parametrize("vectorise", [False, True])
@pytest.mark.parametrize("backbone", [Identity, network])
def test_gradients_are_those_of_a_dense_hessian(backbone, vectorise):
    """Logistic regression on pixels, and a network with BatchNorm, whose strength makes the problem convex."""
    episodes, labels = image_episodes()
    made = learner(backbone(), strength=1.0 if backbone is Identity else 20.0, inner_lr=0.01, vectorise=vectorise)
    expected, slopes = exact(made, episodes, labels, made.adapt(episodes)[1])
    value, found = loss_and_gradients(made, episodes, labels)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope, atol=1e-8, rtol=0)


def test_the_minimum_is_reached_and_its_gradient_is_that_of_differences():
    """Of the query loss at the minimum, as the initial weights move."""
    episodes, labels = image_episodes(episodes=1)
    made = learner(Identity(), inner_steps=300, strength=2.0)
    _, found = loss_and_gradients(made, episodes, labels)
    weight = made.head.weight
    _, weights = made.adapt(episodes)
    at = weights["head.weight"][0].detach().requires_grad_()
    bias = weights["head.bias"][0].detach()
    nn.functional.cross_entropy(episodes.support[0].flatten(1) @ at.T + bias, episodes.support_labels[0]).backward()
    torch.testing.assert_close(at.grad + 2.0 * (at.detach() - weight.detach()), torch.zeros_like(at), atol=1e-12, rtol=0)
    for place in (0, 50, 107):
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                weight.view(-1)[place] += sign * 1e-5
            ends.append(made.loss(episodes, labels)[0].item())
        with torch.no_grad():
            weight.view(-1)[place] += 1e-5
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(found["head.weight"].flatten()[place].item(), abs=1e-9)


def test_without_conjugate_steps_it_is_first_order():
    episodes, labels = image_episodes()
    made = learner(conjugate_steps=0)
    _, found = loss_and_gradients(made, episodes, labels)
    _, weights = made.adapt(episodes)
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    losses = [nn.functional.cross_entropy(functional_call(
        nn.Sequential(made.backbone, made.head),
        {name.replace("backbone", "0").replace("head", "1"): value[i] for name, value in leaves.items()},
        (episodes.query[i],)), labels[i]) for i in range(3)]
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    for name, slope in zip(leaves, slopes, strict=True):
        torch.testing.assert_close(found[name], slope.sum(0), atol=1e-12, rtol=0)


def kept_bytes(made, episodes, labels) -> int:
    """What the graph of the loss holds for the backward pass."""
    class Held:
        def __init__(self, tensor):
            self.tensor = tensor

    held = weakref.WeakSet()  # of the graphs of inner gradients nothing is left

    def pack(tensor):
        one = Held(tensor)
        held.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        loss, _ = made.loss(episodes, labels)
    gc.collect()
    assert loss.requires_grad
    return sum(one.tensor.numel() * one.tensor.element_size() for one in held)


def test_memory_does_not_grow_with_the_steps():
    episodes, labels = image_episodes()
    few, many = (kept_bytes(learner(inner_steps=steps), episodes, labels) for steps in (1, 12))
    assert few == many > 0
    explicit = [kept_bytes(create_method("maml", inner_steps=steps).with_backbone(network(), 3).train(), episodes, labels)
                for steps in (1, 12)]
    assert explicit[1] > 5 * explicit[0]


def test_wrong_settings_and_layers():
    for name, value in (("strength", 0.0), ("strength", float("nan")), ("conjugate_steps", -1)):
        with pytest.raises(FewshotError, match=name):
            create_method("imaml", **{name: value})

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return 2 * slope

    class Once(Identity):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(36, dtype=torch.float64))

        def forward(self, images):
            return Doubled.apply(super().forward(images) + self.shift)

    episodes, labels = image_episodes()
    loss, _ = learner(Once(), vectorise=False).loss(episodes, labels)
    with pytest.raises(FewshotError, match="no second derivative"):
        loss.backward()
