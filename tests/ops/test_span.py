from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.episodes.types import Episodes
from fewshot.ops.span import principal_coordinates, span_coordinates, to_span, to_support_span


def gram(x):
    return x.double() @ x.double().transpose(-1, -2)


def hard_points(points=40, dim=200, seed=0):
    """Features of very different lengths; duplicates, multiples, a near-duplicate, zero rows and low-rank items."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, points, dim, generator=generator, dtype=torch.float64).relu()
    x[1, 5:15] = x[1, :10].clone()
    x[1, 20] = 3 * x[1, 0]
    x[1, 21] = x[1, 0] * (1 + 1e-7)
    x[2, ::3] = 0
    x[2, 1] *= 1e4
    x[2, 2] *= 1e-4
    x[3] = torch.randn(points, 2, generator=generator, dtype=torch.float64) @ x[3, :2]
    x[4] = x[4, :1]
    return x


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-12), (torch.float32, 2e-6)])
def test_inner_products_are_kept_relative_to_the_norms(dtype, tolerance):
    x = hard_points().to(dtype)
    y = span_coordinates(x)
    assert y.shape == (5, 40, 40) and y.dtype == dtype and torch.isfinite(y).all()
    norms = x.double().norm(dim=-1).clamp_min(1e-100)
    error = (gram(y) - gram(x)).abs() / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    assert error.max() < tolerance
    assert (y[2, ::3] == 0).all()


def test_rank_one_items_of_many_points_factorise():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 900, generator=generator).expand(3, 700, 900) * torch.rand(3, 700, 1, generator=generator)
    assert torch.isfinite(span_coordinates(x)).all()


def test_few_dimensions_are_left_alone():
    episodes = random_episodes(dim=25, queries=15)
    assert to_span(episodes) is episodes
    assert to_span(random_episodes(dim=26, queries=15)).query.shape == (3, 15, 25)


def test_episodes_keep_labels_and_include_unlabelled_points():
    made = random_episodes(dim=64)
    unlabelled = made.query[:, :7] + made.query[:, 1:8]
    episodes = Episodes(support=made.support, support_labels=made.support_labels, query=made.query, ways=made.ways,
                        unlabelled=unlabelled)
    small = to_span(episodes)
    assert small.support_labels is episodes.support_labels and small.support.shape[-1] == 10 + 15 + 7
    mixed = episodes.unlabelled @ episodes.support.transpose(1, 2)
    torch.testing.assert_close(small.unlabelled @ small.support.transpose(1, 2), mixed, rtol=0, atol=1e-10)


def test_an_episode_does_not_depend_on_its_batch_mates():
    x = hard_points().float()
    torch.testing.assert_close(span_coordinates(x)[1:2], span_coordinates(x[1:2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [200, 30])
def test_principal_coordinates_keep_inner_products_and_ignore_the_order_of_points(dim):
    x = hard_points(dim=dim)[:2]
    y = principal_coordinates(x)
    scale = x.square().sum(-1).amax()
    assert y.shape == (2, 40, min(40, dim)) and (gram(y) - gram(x)).abs().max() < 1e-12 * scale
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(principal_coordinates(x[:1, order]).abs(), y[:1, order].abs(), atol=1e-8, rtol=0)
    assert (y.square().sum(1).diff(dim=-1) <= 1e-9).all()


@pytest.mark.parametrize("dim", [200, 6])
def test_support_span_keeps_what_a_linear_classifier_sees(dim):
    """Inner products of support and queries around the support mean, also for duplicates and a point at the mean."""
    episodes = random_episodes(episodes=3, ways=4, shots=2, queries=10, dim=dim)
    support = episodes.support.clone()
    support[1, 5] = support[1, 2]
    support[2, 3] = support[2, [0, 1, 2, 4, 5, 6, 7]].mean(0)
    reduced = to_support_span(Episodes(support, episodes.support_labels, episodes.query, 4))
    mean = support.mean(1, keepdim=True)
    assert reduced.support.shape[-1] == min(8, dim)
    torch.testing.assert_close(gram(reduced.support), gram(support - mean), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(reduced.query @ reduced.support.transpose(1, 2),
                               (episodes.query - mean) @ (support - mean).transpose(1, 2), atol=1e-6, rtol=1e-6)
