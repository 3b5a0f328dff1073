from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.kmeans import KMeans
from fewshot.methods.slk_means import SLKMeans
from tests.methods.agreement import check_labels
from tests.methods.test_kmeans import compare_with_reference

AGREEMENT = [("slk_means", {"clamp_support": False}, "slk_means")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_labels(oracles, *case)


@pytest.mark.parametrize("clamp", [True, False])
def test_against_a_loop(clamp):
    """Without normalisation the costs are large; the weight is chosen so that the graph matters."""
    method = SLKMeans(norm="un", laplacian_weight=4.0, clamp_support=clamp)
    assert len(compare_with_reference(method, 1e-9, clamp=clamp, weight=4.0).unique()) > 1


def test_without_the_graph_it_is_kmeans():
    episodes = random_episodes(shots=3, queries=20)
    assert torch.equal(SLKMeans(norm="l2n", laplacian_weight=0.0)(episodes), KMeans(norm="l2n")(episodes))


def test_the_graph_changes_predictions():
    episodes = random_episodes(episodes=6, shots=1, queries=40, spread=1.2)
    smooth, plain = SLKMeans(norm="l2n").refine(episodes), KMeans(norm="l2n").refine(episodes)
    assert smooth.converged.all() and (smooth.logits.argmax(-1) != plain.logits.argmax(-1)).any()


def test_rotation_and_translation_change_nothing():
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    method = SLKMeans(norm="un")
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation + 7.0)), method(episodes))


def test_wrong_values_raise():
    with pytest.raises(FewshotError, match="laplacian_weight=-0.5"):
        SLKMeans(laplacian_weight=-0.5)
    with pytest.raises(FewshotError, match="neighbours=0"):
        SLKMeans(norm="l2n", neighbours=0)(random_episodes())
