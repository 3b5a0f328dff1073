from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.ops.frozen_prefix import ReplayedNetwork, shared_copy
from fewshot.ops.network_blocks import block_weights, chosen_weights, network_blocks

BACKBONES = {"conv4": {"image_size": 16}, "resnet12": {"image_size": 16, "width": 8}, "resnet18": {"image_size": 16},
             "efficientnet_lite0": {"image_size": 32, "weights": "random"},
             "timm/vit_tiny_patch16_224": {"image_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2},
             "timm/resnet10t": {"image_size": 32}}
KEPT = {"conv4": "blocks.2", "resnet12": "blocks.2", "resnet18": "layers.2", "efficientnet_lite0": "net.blocks.5",
        "timm/vit_tiny_patch16_224": "net.blocks.1", "timm/resnet10t": "net.layer3"}


class Skipping(nn.Module):
    """Weights of the first layers are read again at the end; one layer is used twice; and it works in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.unread, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = x.flatten(1)
        first = self.first(x)
        self.unread(first)
        second = self.second(self.second(first))
        second += 1
        third = self.third(second)
        first *= third
        return self.last(first)


def made(name: str, seed: int = 0) -> nn.Module:
    return create_backbone(name, seed=seed, **BACKBONES[name]).double()


@pytest.mark.parametrize("name", list(BACKBONES))
def test_features_and_gradients_are_those_of_the_network(name):
    """One image is kept where it leaves the frozen blocks, and the derivatives of the rest are the same."""
    backbone, generator = made(name), torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 3, backbone.input_size, backbone.input_size, generator=generator, dtype=torch.float64)
    names = chosen_weights(backbone, "last")
    values = {key: value.detach() + 0.01 for key, value in backbone.named_parameters() if key in names}
    found = []
    replayed = ReplayedNetwork(backbone, names)
    images = replayed.prepare(pixels)
    assert replayed.kept == (KEPT[name],)
    for call in (lambda v: replayed(v, images), lambda v: functional_call(backbone, v, (pixels,))):
        leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
        features = call(leaves)
        features.square().sum().backward()
        found.append((features.detach(), {key: leaf.grad for key, leaf in leaves.items()}))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-9)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(replayed(values, images[rows]), found[1][0][rows], atol=1e-12, rtol=0)


def test_only_what_is_read_is_kept():
    with isolated_rng(0):
        network, pixels = Skipping(), torch.rand(5, 1, 2, 4)
    replayed = ReplayedNetwork(network, ["third.weight"])
    images = replayed.prepare(pixels)
    # `second` is called twice, so it is computed again; `unread` has no influence.
    assert replayed.kept == ("first",)
    for _ in range(2):  # what is kept stays what it was, although the network works in place
        torch.testing.assert_close(replayed({}, images), network(pixels))
    assert ReplayedNetwork(network, ["last.bias"]).prepare(pixels).outputs.keys() == {"first", "third"}
    assert ReplayedNetwork(network, []).prepare(pixels).outputs[""].shape == (5, 4)


def test_nothing_is_replayed_where_it_would_be_wrong():
    class Counting(Skipping):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + self.calls

    network = Counting()
    replayed = ReplayedNetwork(network, ["last.weight"])
    assert replayed.prepare(torch.rand(2, 1, 2, 4)).outputs == {} and replayed.kept == ()
    batch = ReplayedNetwork(made("conv4"), ["blocks.3.0.weight"], "batch")
    assert batch.prepare(torch.rand(4, 3, 16, 16, dtype=torch.float64)).outputs == {}


def test_other_sizes_of_images_are_planned_anew():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    replayed = ReplayedNetwork(network, ["1.weight"])
    for size in (6, 9):
        pixels = torch.rand(3, 1, size, size)
        torch.testing.assert_close(replayed({}, replayed.prepare(pixels)), network(pixels))
    assert replayed.kept == ("0",)


def test_a_shared_copy_takes_no_memory_and_leaves_the_network_alone():
    backbone = made("conv4").train()
    copied = shared_copy(backbone, "batch")
    pointers = [{key: value.data_ptr() for key, value in network.state_dict().items()} for network in (backbone, copied)]
    assert pointers[0] == pointers[1]
    assert not any(value.requires_grad for value in copied.parameters())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    copied(torch.rand(4, 3, 16, 16, dtype=torch.float64))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules()) and all(p.requires_grad for p in backbone.parameters())
    with pytest.raises(FewshotError, match="keeps no running statistics"):
        shared_copy(nn.BatchNorm2d(2, track_running_stats=False))


@pytest.mark.parametrize(("name", "first", "count"), [
    ("conv4", "blocks.0", 4), ("resnet12", "blocks.0", 4), ("resnet18", "layers.0", 4),
    ("efficientnet_lite0", "net.blocks.0", 7), ("timm/vit_tiny_patch16_224", "net.blocks.0", 3),
    ("timm/resnet10t", "net.layer1", 4)])
def test_blocks_of_backbones(name, first, count):
    """Every weight belongs to one block: the stem to the first, what follows to the last."""
    backbone = made(name)
    blocks, weights = network_blocks(backbone), block_weights(backbone)
    assert blocks[0] == first and len(blocks) == count and all(weights)
    assert [name for part in weights for name in part] == [name for name, _ in backbone.named_parameters()]


def test_blocks_of_other_networks():
    assert network_blocks(nn.Linear(2, 2)) == [""] and block_weights(nn.Linear(2, 2)) == [["weight", "bias"]]
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.ReLU())
    assert network_blocks(nested) == ["0.0", "0.2"]
    assert chosen_weights(nested, "1,0") == ["0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias"]
    assert chosen_weights(nested, "none") == [] and chosen_weights(nested, "last") == ["0.2.weight", "0.2.bias"]
    for wrong in ("2", "first", "-1", "", "0,"):
        with pytest.raises(FewshotError, match=f"blocks='{wrong}'"):
            chosen_weights(nested, wrong)
