from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.ops.intervals import Interval, IntervalNetwork, TwinNetwork, propagate, with_mix


def network(seed=0):
    """Every kind of layer; BatchNorm with statistics and weights of both signs that are not the initial ones."""
    with isolated_rng(seed):
        made = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU(),
                             nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Identity(), nn.ReLU()),
                             nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.ReLU()).double()
        for layer in (made[1], made[7]):
            for name in ("weight", "bias", "running_mean"):
                getattr(layer, name).data.normal_()
            layer.running_var.uniform_(0.3, 2)
    return made.eval()


def images(count=6, seed=0, size=16):
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inside(x, epsilon, generator):
    """Half of the points are corners of the ball."""
    noise = 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1
    return x + epsilon * (noise.sign() if torch.rand((), generator=generator) < 0.5 else noise)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("depth", range(1, 10))
def test_outputs_of_points_inside_stay_within_the_bounds(epsilon, depth):
    layers, x, generator = network()[:depth], images(), torch.Generator().manual_seed(depth)
    found = propagate(layers, Interval.around(x, epsilon))
    with torch.no_grad():
        torch.testing.assert_close(found.nominal, layers(x), atol=1e-12, rtol=0)
        for _ in range(60):
            y = layers(inside(x, epsilon, generator))
            assert (y >= found.lower - 1e-12).all() and (y <= found.upper + 1e-12).all()
    assert (found.lower <= found.nominal + 1e-12).all() and (found.nominal <= found.upper + 1e-12).all()
    assert (found.upper - found.lower).max() > epsilon / 100, "bounds that say something"


def test_training_batch_norm_uses_and_records_the_nominal_values_alone():
    layers, x = network()[:2], images()
    plain, frozen = copy.deepcopy(layers).train(), copy.deepcopy(layers)
    convolved = layers[0](x)
    with torch.no_grad():
        frozen[1].running_mean.copy_(convolved.mean((0, 2, 3)))
        frozen[1].running_var.copy_(convolved.var((0, 2, 3), correction=0))
    expected = propagate(frozen, Interval.around(x, 0.3))
    found = propagate(layers.train(), Interval.around(x, 0.3))
    for name in ("lower", "nominal", "upper"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-12, rtol=0)
    plain(x)
    torch.testing.assert_close(dict(layers.named_buffers()), dict(plain.named_buffers()), atol=1e-12, rtol=0)


def test_nothing_around_a_point_is_the_point():
    found = propagate(network(), Interval.around(images(), 0.0))
    for bound in (found.lower, found.upper):
        torch.testing.assert_close(bound, found.nominal, atol=1e-12, rtol=0)
    assert found.distances().max() < 1e-24


@pytest.mark.parametrize("layer", [nn.Linear(7, 3), nn.Conv2d(2, 3, 3)], ids=str)
def test_bounds_of_one_linear_layer_are_reached(layer):
    layer, epsilon = layer.double(), 0.2
    shape = (7,) if isinstance(layer, nn.Linear) else (2, 3, 3)  # the convolution sees all of its input at once
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = propagate(layer, Interval.around(x, epsilon))
    for unit in range(3):
        corner = epsilon * layer.weight[unit].detach().sign()
        for bound, point in ((found.upper, x + corner), (found.lower, x - corner)):
            torch.testing.assert_close(bound[:, unit], layer(point)[:, unit], atol=1e-12, rtol=0)


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Dropout(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")], ids=str)
def test_other_layers_are_refused_by_name(layer):
    with pytest.raises(FewshotError, match=rf"layer 1\.0 \({type(layer).__name__}.*Conv2d, Linear"):
        propagate(nn.Sequential(nn.Identity(), nn.Sequential(layer)), Interval.around(images(), 0.1))


def test_interpolation_lies_between_nominal_and_bound():
    found = propagate(network()[:4], Interval.around(images(5), 0.2))
    mix = torch.tensor([0.0, 1.0, -1.0, 0.25, -0.75], dtype=torch.float64)
    between = found.interpolate(mix)
    torch.testing.assert_close(between[0], found.nominal[0])
    torch.testing.assert_close(between[1], found.upper[1])
    torch.testing.assert_close(between[2], found.lower[2])
    torch.testing.assert_close(between[3], 0.75 * found.nominal[3] + 0.25 * found.upper[3])
    torch.testing.assert_close(between[4], 0.25 * found.nominal[4] + 0.75 * found.lower[4])
    assert (between >= found.lower - 1e-12).all() and (between <= found.upper + 1e-12).all()


def backbone(seed=0):
    return create_backbone("conv4", channels=1, image_size=16, width=4, seed=seed).double()


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_cut_network_is_the_whole(blocks):
    whole, x = backbone().eval(), images(5)[:, :1]
    cut = IntervalNetwork(whole, blocks, 0.1)
    found = cut.bounds(x)
    torch.testing.assert_close(cut.finish(found.nominal), whole(x), atol=1e-12, rtol=0)
    assert dict(cut.named_parameters()).keys() == dict(whole.named_parameters()).keys()
    assert all(value is whole.get_parameter(name) for name, value in cut.named_parameters())
    expected = torch.stack([((bound - found.nominal) ** 2).mean((1, 2, 3)) for bound in (found.upper, found.lower)], 1)
    torch.testing.assert_close(cut(x), expected)

    mix = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0], dtype=torch.float64)
    features = TwinNetwork(whole, blocks, 0.1)(with_mix(x, mix))
    torch.testing.assert_close(features[:5], whole(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(features[5:], cut.finish(found.interpolate(mix)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_weights_given_by_name_and_vectorised(training):
    """The whole of the network's functional use: other weights for every episode, in one vmap."""
    x = torch.stack([images(4, seed)[:, :1] for seed in range(3)])
    sources = [backbone(seed).train(training) for seed in range(3)]
    for source in sources:
        for layer in source.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = not training
    cut = IntervalNetwork(sources[0], 2, 0.1)
    stacked = {name: torch.stack([source.get_parameter(name).detach() for source in sources])
               for name, _ in cut.named_parameters()}
    found = vmap(lambda weights, images: functional_call(cut, weights, (images,)))(stacked, x)
    expected = torch.stack([IntervalNetwork(source, 2, 0.1)(images) for source, images in zip(sources, x, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_other_backbones_are_refused():
    with pytest.raises(FewshotError, match="resnet18 is not a plain sequence of blocks.*conv4"):
        IntervalNetwork(create_backbone("resnet18", channels=3, image_size=32), 1, 0.1)
    with pytest.raises(FewshotError, match="blocks=5; the backbone has 4"):
        IntervalNetwork(backbone(), 5, 0.1)
    with pytest.raises(FewshotError, match="blocks=0"):
        IntervalNetwork(backbone(), 0, 0.1)
