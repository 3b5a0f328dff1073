from __future__ import annotations

import torch
from torch import nn

from tests.methods.agreement import check_soft
from tests.methods.fine_tuning import (
    check_against,
    check_without_steps,
    cosine_prototypes,
    learner,
    two_blocks,
)
from tests.methods.image_episodes import image_episodes

AGREEMENT = [("url", {}, "url")]


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0])


def test_against_a_plain_loop():
    """The map as a layer of its own."""
    def by_hand(network, labels):
        network.map = nn.Linear(4, 4, bias=False).double()
        nn.init.eye_(network.map.weight)
        return cosine_prototypes(labels, last=network.map), [{"params": network.map.parameters(), "lr": 1.0}]

    check_against("url", by_hand, "adadelta", 40)


def test_without_steps_it_is_the_nearest_mean_by_cosine():
    check_without_steps("url")


def test_the_backbone_runs_once_for_each_image():
    seen = []

    class Counted(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return images.flatten(1)

    learner("url", Counted())(image_episodes()[0])
    assert seen == [6, 7] * 3


def test_a_network_whose_weights_were_replaced_is_noticed():
    episodes, _ = image_episodes()
    made = learner("url")
    before = made(episodes)
    made.backbone.load_state_dict(two_blocks(1).state_dict())
    changed = made(episodes)
    assert not torch.equal(changed, before) and torch.equal(changed, learner("url", two_blocks(1))(episodes))
    made.backbone.load_state_dict(two_blocks().state_dict(), assign=True)
    assert torch.equal(made(episodes), before)
