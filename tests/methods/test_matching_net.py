from __future__ import annotations

import pytest
import torch

from fewshot.errors import FewshotError
from fewshot.methods.matching_net import VARIANTS, MatchingNet
from fewshot.methods.nearest_neighbour import NearestNeighbour
from tests.conftest import random_episodes
from tests.methods.agreement import check_soft

AGREEMENT = [("matching_net", {"scale": 1.0}, "matchingnet_cosine_plain"),
             ("matching_net", {"variant": "closer_look", "scale": 100.0, "relu": True}, "matchingnet_cosine_x100"),
             ("matching_net", {"variant": "class_mean", "scale": 100.0, "relu": True}, "matchingnet_classmean")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


@pytest.mark.parametrize("relu", [False, True])
def test_against_a_loop(relu):
    """Unequal shots and signed features: every support point has the same say."""
    full = random_episodes(shots=3).with_features(lambda x: x - 0.5)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 7, 10, 12])
    support, labels = full.support[:, kept], full.support_labels[:, kept]
    episodes = type(full)(support=support, support_labels=labels, query=full.query, ways=5)
    probabilities = MatchingNet(scale=7.0, relu=relu)(episodes).exp()
    for e in range(3):
        for q, z in enumerate(full.query[e]):
            cosines = torch.stack([z @ s / (z.norm() * s.norm()) for s in support[e]])
            attention = (7 * (cosines.relu() if relu else cosines)).softmax(0)
            expected = torch.stack([attention[labels[e] == n].sum() for n in range(5)])
            torch.testing.assert_close(probabilities[e, q], expected, atol=1e-12, rtol=0)


def test_logits_are_log_probabilities():
    logits = MatchingNet()(random_episodes(shots=4))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 15, dtype=torch.float64))


def test_large_scale_is_the_nearest_neighbour():
    """In float32 too, where the attention of the far classes is below the smallest number."""
    episodes = random_episodes(shots=3, dtype=torch.float32)
    logits = MatchingNet(scale=1e4)(episodes)
    assert torch.isfinite(logits).all() and (logits < -200).any()
    assert torch.equal(logits.argmax(-1), NearestNeighbour("cosine")(episodes).argmax(-1))


def test_small_scale_counts_shots():
    full = random_episodes(shots=2)
    episodes = type(full)(support=full.support[:, :6], support_labels=full.support_labels[:, :6], query=full.query,
                          ways=5)
    expected = torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64).div(6).expand(3, 15, 5)
    torch.testing.assert_close(MatchingNet(scale=1e-9)(episodes).exp(), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant):
    episodes = random_episodes(episodes=1, ways=3, shots=2, queries=3, dim=4).with_features(lambda x: x + 0.1)

    def logits(support, query):
        return MatchingNet(variant=variant)(type(episodes)(support=support, support_labels=episodes.support_labels,
                                                           query=query, ways=3))

    torch.autograd.gradcheck(logits, (episodes.support.requires_grad_(), episodes.query.requires_grad_()))


def test_wrong_values():
    with pytest.raises(FewshotError, match="choose one of attention, closer_look, class_mean"):
        MatchingNet(variant="full")
    with pytest.raises(FewshotError, match="scale=0"):
        MatchingNet(scale=0)
