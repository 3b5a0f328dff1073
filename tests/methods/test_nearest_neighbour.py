from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.nearest_neighbour import NearestNeighbour
from fewshot.methods.protonet import ProtoNet


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_against_a_loop(metric):
    episodes = random_episodes(shots=3)
    logits = NearestNeighbour(metric)(episodes)
    for e in range(3):
        for q, z in enumerate(episodes.query[e]):
            for n in range(5):
                members = episodes.support[e][episodes.support_labels[e] == n]
                if metric == "euclidean":
                    distances = [((z - s) ** 2).sum() for s in members]
                else:
                    distances = [1 - z @ s / (z.norm() * s.norm()) for s in members]
                torch.testing.assert_close(logits[e, q, n], -min(distances), atol=1e-12, rtol=0)


def test_one_shot_is_protonet():
    episodes = random_episodes(shots=1)
    torch.testing.assert_close(NearestNeighbour()(episodes), ProtoNet()(episodes), atol=1e-12, rtol=0)


def test_a_copied_support_point_has_distance_zero():
    episodes = random_episodes(shots=4, queries=20)
    same = type(episodes)(support=episodes.support, support_labels=episodes.support_labels, query=episodes.support,
                          ways=5)
    logits = NearestNeighbour()(same)
    assert torch.equal(logits.argmax(-1), episodes.support_labels)
    assert logits.amax(-1).abs().max() < 1e-12


def test_gradients():
    episodes = random_episodes(episodes=1, ways=3, queries=3, dim=4)

    def logits(support):
        return NearestNeighbour()(type(episodes)(support=support, support_labels=episodes.support_labels,
                                                 query=episodes.query, ways=3))

    torch.autograd.gradcheck(logits, (episodes.support.requires_grad_(),))


def test_unknown_metric():
    with pytest.raises(FewshotError, match="choose 'euclidean' or 'cosine'"):
        NearestNeighbour("manhattan")
