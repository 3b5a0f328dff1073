"""Convolution and BatchNorm with cheaper second derivatives: finite differences, and PyTorch's own derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck

from fewshot.backbones import create_backbone
from fewshot.methods import create_method
from fewshot.ops.second_order import CheapSecondOrder, batch_norm, conv2d
from tests.methods.image_episodes import image_episodes, loss_and_gradients, network

GEOMETRIES = [{}, {"padding": 1}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2, "padding": 2}, {"groups": 2}]


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("fixed", ["nothing", "images", "weights", "bias"])
def test_convolution(geometry, fixed):
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
