from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.fine_tuning import check_against, check_without_steps, cosine_prototypes, learner, two_blocks
from tests.methods.image_episodes import image_episodes, network
from tests.methods.test_finetune import Head


class Scaled(nn.Module):
    """A normalisation layer followed by a scale and a shift for each channel."""

    def __init__(self, layer, shape):
        super().__init__()
        self.layer, self.shape = layer, shape
        self.gamma = nn.Parameter(torch.ones(layer.weight.shape, dtype=torch.float64))
        self.beta = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) * self.gamma.view(self.shape) + self.beta.view(self.shape)


def adapt(network, blocks, shape=(1, -1, 1, 1)):
    found = []
    for block in blocks:
        network.blocks[block][1] = Scaled(network.blocks[block][1], shape)
        found += [network.blocks[block][1].gamma, network.blocks[block][1].beta]
    return found


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(2, n)])
@pytest.mark.parametrize(("chosen", "blocks"), [("all", (0, 1)), ("0", (0,)), ("last", (1,))])
def test_against_a_plain_loop(norm, chosen, blocks):
    def by_hand(network, labels):
        return cosine_prototypes(labels), [{"params": adapt(network, blocks), "lr": 0.01}]

    check_against("film", by_hand, "adam", 6, network=two_blocks(norm=norm), lr=0.01, blocks=chosen)


def test_layer_norm_against_a_plain_loop():
    made = two_blocks()
    made.blocks[1][1] = nn.LayerNorm([4, 3, 3]).double()

    def by_hand(network, labels):
        return cosine_prototypes(labels), [{"params": adapt(network, (1,), (1, 4, 3, 3)), "lr": 0.01}]

    check_against("film", by_hand, "adam", 6, network=made, lr=0.01, blocks="last")


def test_linear_head_against_a_plain_loop():
    def by_hand(network, labels, support):
        head = Head(network, support, labels, False)
        groups = [{"params": adapt(network, (0, 1)), "lr": 0.01}, {"params": head.parameters(), "lr": 0.05}]
        return (lambda net, support, x: head(net(x))), groups

    check_against("film", by_hand, "adam", 6, lr=0.01, head="linear", head_lr=0.05)


def test_without_steps_it_is_the_nearest_mean_by_cosine():
    check_without_steps("film")


def test_only_normalisation_layers_change():
    made = learner("film", blocks="1")
    assert made.changing == ["blocks.1.1.weight", "blocks.1.1.bias"]
    assert learner("film", blocks="none").changing == []


def test_mistakes_are_named():
    with pytest.raises(FewshotError, match="no normalisation layers with weight and bias in blocks='all'"):
        learner("film", network(batch_norm=False))
    with pytest.raises(FewshotError, match="no normalisation layers"):
        learner("film", two_blocks(norm=lambda n: nn.BatchNorm2d(n, affine=False)))
    for settings, message in (({"head": "cosine"}, "head='cosine'"), ({"head_lr": -0.1}, "head_lr=-0.1"),
                              ({"blocks": "1;2"}, "blocks='1;2'"), ({"scale": 0.0}, "scale=0.0")):
        with pytest.raises(FewshotError, match=message):
            create_method("film", **settings)
    with pytest.raises(FewshotError, match="0 to 1"):
        learner("film", blocks="2")


def test_it_fits_a_support_that_the_frozen_features_do_not():
    """What adaptation is for: the loss of the support falls."""
    episodes, _ = image_episodes(shots=4, spread=0.9)
    asked = type(episodes)(episodes.support, episodes.support_labels, episodes.support, 3)
    before, after = (nn.functional.cross_entropy(learner("film", lr=0.05, steps=steps)(asked).flatten(0, 1),
                                                 asked.support_labels.flatten()) for steps in (0, 40))
    assert after < 0.9 * before
