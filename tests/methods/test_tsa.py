from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.fine_tuning import check_against, check_without_steps, cosine_prototypes, learner, two_blocks
from tests.methods.image_episodes import Identity

AGREEMENT = [("tsa", {}, "tsa")]


class Beside(nn.Module):
    """A convolution with a 1x1 convolution beside it."""

    def __init__(self, layer, initial):
        super().__init__()
        self.layer = layer
        self.alpha = nn.Conv2d(layer.in_channels, layer.out_channels, 1, layer.stride, groups=layer.groups, bias=False,
                               dtype=torch.float64)
        with torch.no_grad():
            self.alpha.weight.copy_(initial * torch.eye(*self.alpha.weight.shape[:2])[..., None, None])

    def forward(self, x):
        return self.layer(x) + self.alpha(x)


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0], only=("caltech_dn4_5w1s",), first=2)


@pytest.mark.slow
def test_agrees_with_official_code_on_all_inputs(oracles):
    check_soft(oracles, *AGREEMENT[0])


@pytest.mark.parametrize("initial", [1e-4, 0.0, 0.5])
@pytest.mark.parametrize(("chosen", "blocks"), [("all", (0, 1)), ("1", (1,))])
def test_against_a_plain_loop(initial, chosen, blocks):
    """Adapters beside the convolutions, here with strides, and groups in the second; the map as a layer."""
    network = two_blocks()
    network.blocks[0][0].stride = (2, 2)

    def by_hand(network, labels):
        for block in blocks:
            network.blocks[block][0] = Beside(network.blocks[block][0], initial)
        network.map = nn.Linear(4, 4, bias=False).double()
        nn.init.eye_(network.map.weight)
        adapters = [network.blocks[block][0].alpha.weight for block in blocks]
        return (cosine_prototypes(labels, last=network.map),
                [{"params": adapters, "lr": 0.5}, {"params": network.map.parameters(), "lr": 1.0}])

    check_against("tsa", by_hand, "adadelta", 10, network=network, initial=initial, blocks=chosen)


def test_without_steps_it_is_the_nearest_mean_by_cosine():
    check_without_steps("tsa")


def test_an_initial_value_of_zero_leaves_the_features():
    """One step of the map at a tiny rate, so that the adapters are in place."""
    check_without_steps("tsa", ({"steps": 1, "lr": 1e-300, "head_lr": 0.0, "initial": 0.0},))


def test_mistakes_are_named():
    with pytest.raises(FewshotError, match="no convolution with a kernel larger than 1"):
        learner("tsa", Identity())
    with pytest.raises(FewshotError, match=r"kernel of \(2, 2\), which has no middle"):
        learner("tsa", nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()))
    for settings, message in (({"head_lr": -1.0}, "head_lr=-1.0"), ({"initial": -1.0}, "initial=-1.0"),
                              ({"scale": 0.0}, "scale=0.0")):
        with pytest.raises(FewshotError, match=message):
            create_method("tsa", **settings)
