from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot.backbones import create_backbone
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.heads import uniform
from tests.methods.fine_tuning import check_against, check_without_steps, cosine_prototypes, learner
from tests.methods.image_episodes import image_episodes


class Low(nn.Module):
    """A layer with a branch beside it: a convolution to `rank` channels (a map to `rank` numbers), and one from there."""

    def __init__(self, layer, rank, factor, name):
        super().__init__()
        self.layer, self.factor = layer, factor
        if isinstance(layer, nn.Linear):
            self.A, self.B = nn.Linear(layer.in_features, rank, False), nn.Linear(rank, layer.out_features, False)
        else:
            self.A = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False)
            self.B = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        self.double()
        with torch.no_grad():
            inputs = self.A.weight[0].numel()
            self.A.weight.copy_(uniform((rank, inputs), inputs**-0.5, 0, f"{name}.weight").view(self.A.weight.shape))
            self.B.weight.zero_()

    def forward(self, x):
        return self.layer(x) + self.factor * self.B(self.A(x))


@pytest.mark.parametrize(("scaling", "factor"), [("rank", 0.5), ("sqrt", 2**-0.5)])
def test_convolutions_against_a_plain_loop(scaling, factor):
    """Without the convolution of two groups."""
    def by_hand(network, labels):
        network.blocks[0][0] = Low(network.blocks[0][0], 2, factor, "blocks.0.0")
        network.last = Low(network.last, 2, factor, "last")
        branches = [p for low in (network.blocks[0][0], network.last) for p in (low.A.weight, low.B.weight)]
        return cosine_prototypes(labels), [{"params": branches, "lr": 0.01}]

    check_against("lora", by_hand, "adam", 6, lr=0.01, scaling=scaling)


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.qkv = nn.Linear(36, 8), nn.Linear(8, 6)

    def forward(self, images):
        return self.qkv(self.first(images.flatten(1)).tanh())


def test_linear_layers_against_a_plain_loop():
    torch.manual_seed(0)
    network = Maps().double()

    def by_hand(network, labels):
        network.qkv = Low(network.qkv, 3, 4.0 / 3, "qkv")
        return cosine_prototypes(labels), [{"params": [network.qkv.A.weight, network.qkv.B.weight], "lr": 0.01}]

    check_against("lora", by_hand, "adam", 6, network=network, lr=0.01, rank=3, alpha=4.0, scaling="rank", match="qkv|proj")


def test_without_steps_it_is_the_nearest_mean_by_cosine():
    check_without_steps("lora")


def test_a_vision_transformer():
    """qkv and proj of the last blocks; what comes before them runs once."""
    backbone = create_backbone("timm/vit_tiny_patch16_224", image_size=32, depth=3, embed_dim=24, num_heads=2).double()
    made = learner("lora", backbone, match="attn", blocks="1,2", lr=0.01, steps=3)
    assert made.changing == [f"net.blocks.{i}.attn.{name}.weight" for i in (1, 2) for name in ("qkv", "proj")]
    episodes, _ = image_episodes()
    large = episodes.with_features(lambda x: x.repeat(1, 1, 3, 6, 6)[..., :32, :32])
    answer = made(large)
    assert made._replayed[1].kept == ("net.blocks.0", "net.blocks.1.norm1")
    frozen = learner("lora", backbone, match="attn", blocks="1,2", steps=0)(large)
    assert answer.shape == (3, 7, 3) and (answer - frozen).abs().max() > 1e-4


def test_mistakes_are_named():
    for settings, message in (({"rank": 0}, "rank=0"), ({"alpha": 0.0}, "alpha=0.0"), ({"head": "mlp"}, "head='mlp'"),
                              ({"scaling": "none"}, "scaling='none'"), ({"match": "("}, "no regular expression")):
        with pytest.raises(FewshotError, match=message):
            create_method("lora", **settings)
    with pytest.raises(FewshotError, match="no linear layer or convolution with match='qkv' in blocks='all'"):
        learner("lora", match="qkv")
