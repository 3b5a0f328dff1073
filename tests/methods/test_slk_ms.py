from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.kmeans import KMeans
from fewshot.methods.slk_ms import SLKMS
from tests.methods.agreement import check_labels, prepared
from tests.methods.test_kmeans import compare_with_reference
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("slk_ms", {"clamp_support": False}, "slk_ms"),
             ("slk_ms", {"clamp_support": False, "laplacian_weight": 0.0}, "slk_kmodes_nolap")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    """Labels exactly; the modes within what the two stopping rules of the mean-shift leave open."""
    check_labels(oracles, *case)
    name, params, official = case
    for inputs in inputs_of(oracles, official):
        outputs, _ = load_outputs(oracles, official, inputs)
        episodes, raw = load_inputs(oracles, inputs)
        found = prepared(name, params, raw).refine(episodes[:4]).prototypes
        np.testing.assert_allclose(found, outputs["centres"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_against_a_loop(clamp, weight):
    method = SLKMS(norm="un", laplacian_weight=weight, clamp_support=clamp)
    compare_with_reference(method, 1e-4, clamp=clamp, weight=weight, mode=True)


def test_given_bandwidth_against_a_loop():
    compare_with_reference(SLKMS(norm="un", laplacian_weight=0.0, bandwidth=3.0), 1e-4, mode=True, sigma=3.0)


def test_a_wide_kernel_gives_means():
    """With a flat kernel the mode of a cluster is its mean, so K-modes makes the same clusters as K-means."""
    episodes = random_episodes(episodes=6, shots=2, queries=40, spread=1.2)
    modes = SLKMS(norm="un", laplacian_weight=0.0, bandwidth=1e3, tolerance=0.0).refine(episodes)
    means = KMeans(norm="un", tolerance=0.0).refine(episodes)
    torch.testing.assert_close(modes.prototypes, means.prototypes, atol=1e-4, rtol=0)
    assert torch.equal(modes.logits.argmax(-1), means.logits.argmax(-1))


def test_a_mode_ignores_an_outlier_that_moves_the_mean():
    support = torch.tensor([[[0.0], [0.1], [0.2], [3.0], [20.0], [20.1], [20.2], [20.3]]], dtype=torch.float64)
    episodes = random_episodes(episodes=1, ways=2, dim=1)
    episodes = type(episodes)(support=support, support_labels=torch.tensor([[0] * 4 + [1] * 4]), query=support, ways=2)
    modes = SLKMS(norm="un", bandwidth=0.8).refine(episodes).prototypes[0, 0]
    means = KMeans(norm="un").refine(episodes).prototypes[0, 0]
    assert float(modes) < 0.3 < 0.8 < float(means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_coinciding_points_have_a_bandwidth(dtype, weight):
    """Points with two copies are at distance 0 from all their neighbours, at any scale of the features."""
    method = SLKMS(norm="un", laplacian_weight=weight)
    assert torch.isfinite(method(random_episodes(dtype=dtype).with_features(torch.zeros_like))).all()
    episodes = random_episodes(dtype=dtype, spread=0.1).with_features(lambda x: 1e-6 * x.repeat(1, 3, 1))
    episodes = Episodes(support=episodes.support, support_labels=episodes.support_labels.repeat(1, 3),
                        query=episodes.query, ways=5)
    predicted = method(episodes).argmax(-1)
    assert torch.equal(predicted[:, :15], predicted[:, 15:30])
    assert torch.equal(predicted, method(episodes.with_features(lambda x: 1e6 * x)).argmax(-1))


def test_rotation_and_translation_change_nothing():
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    method = SLKMS(norm="un")
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation + 7.0)), method(episodes))


def test_wrong_values_raise():
    with pytest.raises(FewshotError, match="bandwidth=0"):
        SLKMS(bandwidth=0)
