"""Convolution and BatchNorm with cheaper second derivatives: finite differences, and PyTorch's own derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.methods import create_method
from fewshot.ops.second_order import CheapSecondOrder, batch_norm, conv2d, differentiable, twice_differentiable
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network

GEOMETRIES = [{}, {"padding": 1}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2, "padding": 2}, {"groups": 2}]


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize(("geometry", "fixed"), [
    *((geometry, "nothing") for geometry in GEOMETRIES), *(({}, fixed) for fixed in ("images", "weights", "bias"))], ids=str)
def test_convolution(geometry, fixed):
    """What has no gradient is left out in one place, whatever the geometry."""
    x, weight, bias = tensors((2, 2, 4, 5), (2, 2 // geometry.get("groups", 1), 3, 3), (2,))
    call = {"nothing": (lambda *t: conv2d(*t, **geometry), (x, weight, bias)),
            "images": (lambda *t: conv2d(x.detach(), *t, **geometry), (weight, bias)),
            "weights": (lambda *t: conv2d(t[0], weight.detach(), t[1], **geometry), (x, bias)),
            "bias": (lambda *t: conv2d(*t, None, **geometry), (x, weight))}[fixed]
    assert torch.equal(conv2d(x, weight, bias, **geometry), F.conv2d(x, weight, bias, **geometry))
    assert gradcheck(*call) and gradgradcheck(*call)


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (5, 3)], ids=str)
@pytest.mark.parametrize("fixed", ["nothing", "images", "weights"])
def test_batch_norm(shape, fixed):
    x, weight, bias = tensors(shape, shape[1:2], shape[1:2])
    call = {"nothing": (lambda *t: batch_norm(t[0], None, None, *t[1:], True), (x, weight, bias)),
            "images": (lambda *t: batch_norm(x.detach(), None, None, *t, True), (weight, bias)),
            "weights": (lambda t: batch_norm(t, None, None, weight.detach(), bias.detach(), True), (x,))}[fixed]
    assert gradcheck(*call) and gradgradcheck(*call)


def test_batch_norm_of_a_channel_whose_weight_is_zero():
    x, weight, bias = tensors((4, 2, 3, 3), (2,), (2,))
    with torch.no_grad():
        weight[0] = 0
    assert gradgradcheck(lambda *t: batch_norm(t[0], None, None, *t[1:], True), (x, weight, bias))


def test_running_statistics_are_recorded_as_usual():
    x, = tensors((4, 3, 2, 2))
    ours, theirs = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    with CheapSecondOrder():
        ours(x)
    theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=0, rtol=0)
    with CheapSecondOrder():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_second_derivatives_of_a_network_are_those_of_pytorch(dtype, atol):
    """In single precision with a mean far from zero, too: the formula must not lose more digits than PyTorch's."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
                        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 3)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = 5 + torch.rand(6, 1, 10, 10, generator=generator, dtype=torch.float64).to(dtype)
    parameters = list(net.parameters())

    def derivatives():
        loss = net(x).logsumexp(1).sum()
        first = grad(loss, parameters, create_graph=True)
        return grad(sum(g.square().sum() for g in first).sqrt(), parameters)

    with CheapSecondOrder():
        found = derivatives()
    expected = derivatives()
    scale = max(value.abs().max() for value in expected)
    torch.testing.assert_close([v / scale for v in found], [v / scale for v in expected], atol=atol, rtol=0)


def test_third_derivatives():
    """Those of the convolution exist; BatchNorm, in PyTorch too, has none and says so."""
    x, weight, bias = tensors((2, 2, 4, 4), (2, 2, 3, 3), (2,))

    def third(call):
        value = call().exp().sum()
        for _ in range(3):
            value = sum(g.square().sum() for g in grad(value, (x, weight), create_graph=True, materialize_grads=True))
        return value

    torch.testing.assert_close(third(lambda: conv2d(x, weight, bias)), third(lambda: F.conv2d(x, weight, bias)),
                               atol=0, rtol=1e-9)
    with pytest.raises(RuntimeError, match="no third derivative"):
        third(lambda: batch_norm(x, None, None, bias, bias, True))


def test_autocast_computes_in_bfloat16():
    x, weight, bias = tensors((2, 3, 6, 6), (4, 3, 3, 3), (4,), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with CheapSecondOrder():
            found = F.conv2d(x, weight, bias, padding=1)
        expected = F.conv2d(x, weight, bias, padding=1)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert grad(found.sum(), weight)[0].dtype == torch.float32


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "running"}, {"batch_norm": "per_step", "learned_rates": True}],
                         ids=str)
def test_maml_uses_them_and_gives_what_it_gave(monkeypatch, settings, checkpoint):
    episodes, labels = image_episodes()
    calls = []
    counted = CheapSecondOrder.__torch_function__

    def count(self, func, *arguments):
        calls.append(func)
        return counted(self, func, *arguments)

    monkeypatch.setattr(CheapSecondOrder, "__torch_function__", count)

    def run(cheap):
        learner = create_method("maml", inner_lr=0.1, inner_steps=3, checkpoint=checkpoint, **settings)
        learner = learner.with_backbone(network(), 3).train()
        if not cheap:
            learner._cheap = lambda device: False
        return *loss_and_gradients(learner, episodes, labels), dict(learner.named_buffers())

    expected = run(False)
    assert not calls
    found = run(True)
    assert F.conv2d in calls and F.batch_norm in calls
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_maps_of_one_channel_images_have_their_channels_last():
    """Otherwise pooling and BatchNorm of the largest maps, those of the first block, are several times slower."""
    backbone = create_backbone("conv4", channels=1, image_size=28)
    seen = []
    backbone.blocks[0][0].register_forward_hook(
        lambda layer, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)))
    learner = create_method("maml", inner_steps=1).with_backbone(backbone, 2).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 1, 28, 28, generator=generator)
    labels = torch.arange(2).expand(2, -1).contiguous()
    learner.loss(type(image_episodes()[0])(images, labels, images, 2), labels)
    assert len(seen) == 4 and all(seen)


# -- layers whose second derivative PyTorch lacks ------------------------------------------------------------------------


class Attention(nn.Module):
    """Patches of a 6 x 6 image attend to each other; then a hard sigmoid and distances to learned points."""

    feature_dim = 5

    def __init__(self):
        super().__init__()
        with isolated_rng(0):
            self.project, self.mix = nn.Linear(4, 12), nn.Linear(4, 4)
            self.gate = nn.Hardsigmoid(inplace=True)
            self.points = nn.Parameter(torch.randn(5, 4))

    def forward(self, images):
        patches = F.unfold(images, 2, stride=2).transpose(1, 2)  # [B, 9, 4]
        q, k, v = self.project(patches).unsqueeze(1).chunk(3, -1)
        x = F.scaled_dot_product_attention(q, k, v).mean((1, 2))  # [B, 4]
        return torch.cdist(self.gate(3 * self.mix(x)), self.points)


@pytest.mark.parametrize("settings", [{}, {"vectorise": True}, {"checkpoint": True}], ids=str)
@pytest.mark.parametrize("name", ["maml", "proto_maml"])
def test_meta_gradient_through_attention_hardsigmoid_and_distances(name, settings):
    episodes, labels = image_episodes(episodes=2, ways=2, queries=4)
    network = Attention().double()
    learner = create_method(name, inner_lr=0.1, inner_steps=2, first_order=False, **settings)
    learner = learner.with_backbone(network, 2).double().train()
    weights = list(network.parameters())
    _, found = loss_and_gradients(learner, episodes, labels)
    for weight in weights:
        with torch.no_grad():
            direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            values = []
            for step in (1e-5, -2e-5):
                weight += step * direction
                values.append(learner.loss(episodes, labels)[0].item())
            weight += 1e-5 * direction
        name = next(name for name, value in learner.named_parameters() if value is weight)
        numerical = (values[0] - values[1]) / 2e-5
        assert (found[name] * direction).sum().item() == pytest.approx(numerical, rel=1e-5, abs=1e-9), name


def test_attention_and_hardsigmoid_keep_their_values():
    x, = tensors((3, 2, 7, 8))
    with twice_differentiable():
        found = F.scaled_dot_product_attention(x, x, x), nn.Hardsigmoid()(3 * x), F.hardsigmoid(input=3 * x)
    expected = F.scaled_dot_product_attention(x, x, x), F.hardsigmoid(3 * x), F.hardsigmoid(3 * x)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    assert not differentiable(grad(expected[0].square().sum(), x, create_graph=True))
    assert not differentiable(grad(expected[1].square().sum(), x, create_graph=True))
    assert differentiable(grad(found[0].square().sum() + found[1].square().sum(), x, create_graph=True))


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Once(nn.Module):
    def forward(self, x, *, times=1):
        return OnceOnly.apply(x)


def test_the_layer_without_second_derivative_is_named():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Sequential(nn.BatchNorm2d(4), Once()),
                            nn.Flatten())
    episodes, labels = image_episodes(dtype=torch.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner = create_method("maml", inner_steps=1).with_backbone(network, 3, feature_dim=64).train()
    with torch.no_grad():
        learner(episodes)  # needs none, and must not hide that training does
    with pytest.raises(FewshotError, match=r"layer 2\.1 \(Once\) of the backbone has no second.*choose first_order=True"):
        learner.loss(episodes, labels)
    torch.testing.assert_close(network[0].weight, before["0.weight"])
    assert not network[2][1]._forward_hooks
    assert learner.eval()(episodes).shape == (3, 7, 3)
    first = create_method("maml", inner_steps=1, first_order=True).with_backbone(network, 3, feature_dim=64).train()
    assert "backbone.0.weight" in loss_and_gradients(first, episodes, labels)[1]
