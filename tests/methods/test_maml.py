from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.inner_loop import gradients
from fewshot.training import Learner
from fewshot.training.diagnose import first_non_finite
from tests.methods.image_episodes import Identity, image_episodes, loss_and_gradients, network


def maml(backbone=None, ways=3, **settings):
    settings = {"inner_lr": 0.1, "inner_steps": 2, **settings}
    return create_method("maml", **settings).with_backbone(backbone or network(), ways).train()


# -- the derivative ----------------------------------------------------------------------------------------------------


def quadratic(seed):
    """H, c of the loss (w - c)^T H (w - c) / 2."""
    generator = torch.Generator().manual_seed(seed)
    root, centre = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 5), (5,)))
    return root @ root.T / 5, centre


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("second_order", [True, False])
def test_meta_gradient_of_a_quadratic(steps, second_order):
    """(I - rate H)^steps grad L_query(w'); first order drops the factor."""
    (H, centre), (G, goal), rate = quadratic(0), quadratic(1), 0.1
    start = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    weights = {"w": start}
    for _ in range(steps):
        weights, found, _ = gradients(lambda w: ((w["w"] - centre) @ H @ (w["w"] - centre) / 2, {}), weights, ["w"],
                                      second_order)
        weights = {"w": weights["w"] - rate * found["w"]}
    ((weights["w"] - goal) @ G @ (weights["w"] - goal) / 2).backward()

    factor = torch.eye(5, dtype=torch.float64) - rate * H
    power = torch.linalg.matrix_power(factor, steps)
    end = centre + power @ (start.detach() - centre)
    torch.testing.assert_close(weights["w"].detach(), end, atol=1e-12, rtol=0)
    expected = G @ (end - goal)
    torch.testing.assert_close(start.grad, power @ expected if second_order else expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_of_the_learner_on_a_quadratic(monkeypatch, first_order):
    """The whole learner with squared errors on a linear model, where the Hessian is known."""
    def squares(logits, labels):
        return (logits - torch.eye(3, dtype=logits.dtype)[labels]).square().sum(-1).mean() / 2

    episodes, labels = image_episodes(episodes=1)
    # Made first: a module that is imported while the loss is another one would keep that.
    learner = maml(Identity(), first_order=first_order, inner_steps=3).double()
    monkeypatch.setattr("fewshot.methods.bases.gradient_learner.mean_cross_entropy", squares)
    _, found = loss_and_gradients(learner, episodes, labels)

    def design(x):
        return torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)

    support, query = design(episodes.support[0]), design(episodes.query[0])
    one_hot = torch.eye(3, dtype=torch.float64)
    H = support.T @ support / len(support)
    start = torch.cat([learner.head.weight, learner.head.bias[:, None]], 1).detach().T  # [D + 1, N]
    factor = torch.eye(len(H), dtype=torch.float64) - 0.1 * H
    end = start
    for _ in range(3):
        end = factor @ end + 0.1 * support.T @ one_hot[episodes.support_labels[0]] / len(support)
    expected = query.T @ (query @ end - one_hot[labels[0]]) / len(query)
    expected = expected if first_order else torch.linalg.matrix_power(factor, 3) @ expected
    torch.testing.assert_close(found["head.weight"], expected[:-1].T, atol=1e-12, rtol=0)
    torch.testing.assert_close(found["head.bias"], expected[-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"vectorise": True},
                                      {"batch_norm": "per_step", "learned_rates": True, "multi_step_episodes": 9}],
                         ids=str)
def test_gradcheck_through_two_steps_with_batch_norm_and_pooling(settings):
    episodes, labels = image_episodes(episodes=2, ways=2, queries=4)
    learner = maml(network(width=1), ways=2, **settings)
    used = loss_and_gradients(learner, episodes, labels)[1]
    own = dict(learner.named_parameters())
    assert learner.settings.inner_steps == 2
    unused = {"backbone.layers.1.weight", "backbone.layers.1.bias"} if learner.norms.weights_of else set()
    assert set(used) == set(own) - unused

    def loss(*values):
        copied = copy.deepcopy(learner)  # statistics and counters are updated by every call
        return functional_call(Loss(copied), {f"learner.{name}": v for name, v in zip(used, values, strict=True)},
                               (episodes, labels))

    inputs = tuple(own[name].detach().clone().requires_grad_() for name in used)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


class Loss(nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, episodes, labels):
        return self.learner.loss(episodes, labels)[0]


def test_against_plain_training():
    """The adapted answer is that of a copy of the network trained in the ordinary way."""
    episodes, _ = image_episodes(episodes=1)
    learner = maml(inner_steps=4).eval()
    model = nn.Sequential(copy.deepcopy(learner.backbone), copy.deepcopy(learner.head)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(episodes.support[0]), episodes.support_labels[0]).backward()
        optimiser.step()
    torch.testing.assert_close(learner(episodes)[0], model(episodes.query[0]), atol=1e-12, rtol=0)


def test_frozen_weights_are_not_adapted():
    episodes, labels = image_episodes()
    backbone = network().requires_grad_(False)
    learner = maml(backbone)
    assert learner.adapted == ["head.weight", "head.bias"]
    _, found = loss_and_gradients(learner, episodes, labels)
    assert set(found) == {"head.weight", "head.bias"}
    anil = create_method("anil", inner_lr=0.1, inner_steps=2).with_backbone(backbone, 3).train()
    torch.testing.assert_close(learner(episodes), anil(episodes), atol=1e-12, rtol=0)
    proto = create_method("proto_maml", inner_lr=0.1, inner_steps=2).with_backbone(backbone, 3)
    assert proto(episodes).shape == (3, 7, 3)


# -- MAML++ ------------------------------------------------------------------------------------------------------------


def test_learned_rates_start_as_maml_and_get_the_gradient_of_each_step():
    episodes, labels = image_episodes(episodes=1)
    plain, learned = maml(inner_steps=1), maml(inner_steps=1, learned_rates=True)
    assert torch.equal(plain(episodes), learned(episodes))
    assert [rate.shape for rate in learned.rates] == [(1,)] * len(learned.adapted)
    _, found = loss_and_gradients(learned, episodes, labels)
    # With one step, d L_query / d rate = - <grad L_support, grad L_query(adapted)> for every tensor.
    inner = torch.autograd.grad(nn.functional.cross_entropy(plain.trajectory(
        support_as_query(episodes), {0})[0, 0], episodes.support_labels[0]), [plain._weights()[n] for n in plain.adapted])
    adapted = copy.deepcopy(plain)
    with torch.no_grad():
        for name, gradient in zip(plain.adapted, inner, strict=True):
            adapted._weights()[name] -= 0.1 * gradient
    outer = torch.autograd.grad(nn.functional.cross_entropy(adapted.trajectory(episodes, {0})[0, 0], labels[0]),
                                [adapted._weights()[name] for name in plain.adapted])
    for i, (a, b) in enumerate(zip(inner, outer, strict=True)):
        torch.testing.assert_close(found[f"rates.{i}"], -(a * b).sum().reshape(1), atol=1e-12, rtol=1e-9)


def support_as_query(episodes):
    return type(episodes)(episodes.support, episodes.support_labels, episodes.support, episodes.ways)


def test_each_step_has_its_rate_and_later_steps_the_last():
    episodes, _ = image_episodes()
    learner = maml(inner_steps=2, eval_steps=3, learned_rates=True).eval()
    with torch.no_grad():
        for rate in learner.rates:
            rate.copy_(torch.tensor([0.0, 0.3], dtype=torch.float64))
    every = learner.trajectory(episodes)
    torch.testing.assert_close(every[1], every[0], atol=1e-12, rtol=0)
    plain = maml(inner_lr=0.3, inner_steps=2).trajectory(episodes)
    torch.testing.assert_close(every[2:], plain[1:], atol=1e-12, rtol=0)


def test_multi_step_loss_goes_from_all_steps_to_the_last():
    episodes, labels = image_episodes(episodes=2)
    learner = maml(inner_steps=3, multi_step_episodes=8)
    losses = torch.stack([nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
                          for logits in learner.trajectory(episodes)[1:]])
    expected = [[1 / 3, 1 / 3, 1 / 3], [0.25, 0.25, 0.5], [1 / 6, 1 / 6, 2 / 3], [1 / 12, 1 / 12, 5 / 6],
                [0.01, 0.01, 0.98], [0.01, 0.01, 0.98]]
    for weights in torch.tensor(expected, dtype=torch.float64):
        value, logits = learner.loss(episodes, labels)
        torch.testing.assert_close(value, (weights * losses).sum(), atol=1e-7, rtol=0)
        assert torch.equal(logits, learner(episodes))
    assert learner.episodes_seen == 12
    value, _ = learner.eval().loss(episodes, labels)
    torch.testing.assert_close(value, losses[-1], atol=1e-12, rtol=0)


def test_per_step_batch_norm():
    """Statistics, weights and biases of every step are its own; those of BatchNorm are not adapted."""
    episodes, labels = image_episodes()
    learner = maml(batch_norm="per_step", inner_steps=2, eval_steps=4)
    names = [name for name, _ in learner.norms.named_parameters()]
    assert names == ["layers/1/weight", "layers/1/bias"]
    assert not any("layers.1" in name for name in learner.adapted)
    before = {name: value.clone() for name, value in learner.norms.named_buffers()}
    _, found = loss_and_gradients(learner, episodes, labels)
    assert (found["norms.layers/1/weight"].abs().sum(1) > 0).all()
    for name, value in learner.norms.named_buffers():
        assert ((value - before[name]).abs().amax(1) > 0).all(), "every step records"
        assert not torch.equal(value[0], value[1]) and not torch.equal(value[1], value[2])
    learner.eval()
    reference = learner.trajectory(episodes)
    with torch.no_grad():
        learner.norms.get_parameter("layers/1/weight")[2] *= 2  # used after 2, 3, 4 steps
    changed = learner.trajectory(episodes)
    assert torch.equal(changed[:2], reference[:2])
    assert ((changed[2:] - reference[2:]).abs().amax((1, 2, 3)) > 1e-4).all()


def test_running_statistics_that_are_not_there():
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    with pytest.raises(FewshotError, match="'running'.*layer 1 keeps no running statistics"):
        create_method("maml", batch_norm="running").with_backbone(backbone, 3, feature_dim=32)
    assert create_method("maml").with_backbone(backbone, 3, feature_dim=32).setting == "transductive"
    with pytest.raises(FewshotError, match="multi_step_episodes=-1"):
        create_method("maml", multi_step_episodes=-1)
    with pytest.raises(FewshotError, match="batch_norm='per_step'; choose one of batch, running"):
        create_method("anil", batch_norm="per_step")


# -- in the training loop ----------------------------------------------------------------------------------------------


def test_the_layer_that_is_not_finite_is_found_under_vmap():
    episodes, _ = image_episodes(dtype=torch.float32)
    backbone = network(dtype=torch.float32)
    backbone.transform = lambda images: images
    learner = Learner(backbone, maml(backbone, vectorise=True))
    with torch.no_grad():
        backbone.layers[0].weight.fill_(3e38)
    assert "layers.0 (Conv2d)" in first_non_finite(learner, lambda: learner(episodes))
