from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.kmeans import KMeans
from tests.methods.agreement import check_labels

AGREEMENT = [("kmeans", {"clamp_support": False}, "slk_kmeans_nolap")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_labels(oracles, *case)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def reference(support, labels, query, ways, mode=False, weight=0.0, clamp=True, sigma=None):
    """K-means, K-modes and their SLK forms on one episode in coordinates, cluster by cluster: centres and scores."""
    query = query + support.mean(0) - query.mean(0)
    x, shots = np.concatenate([support, query]), len(support)
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    others = apart + np.diag(np.full(len(x), np.inf))
    affinity = np.zeros_like(apart)
    np.put_along_axis(affinity, others.argsort(1)[:, :2], 1, 1)
    sigma = np.sqrt((affinity * apart).sum() / (5 * len(x))) if sigma is None else sigma
    centres = np.stack([support[labels == n].mean(0) for n in range(ways)])

    def squared(c):
        return ((x[:, None] - c[None]) ** 2).sum(-1)

    def clusters(scores, forced):
        found = scores.argmax(1)
        if forced:
            found[:shots] = labels
        return found

    scores = -squared(centres)
    assigned, previous = clusters(scores, True), np.inf
    for step in range(100):
        old = centres.copy(), scores
        centres = centres.copy()
        for n in range(ways):
            members = x[assigned == n]
            if not mode:
                centres[n] = members.mean(0)
                continue
            for _ in range(5000):
                kernel = np.exp(-((members - centres[n]) ** 2).sum(1) / (2 * sigma**2))
                moved = kernel @ members / kernel.sum()
                step_length = np.abs(moved - centres[n]).max()
                centres[n] = moved
                if step_length < 1e-7:
                    break
        cost = -np.exp(-squared(centres) / (2 * sigma**2)) if mode else squared(centres)
        scores = -squared(centres) / (2 * sigma**2) if mode else -cost
        if weight:
            y = softmax(-cost)
            y[:shots] = np.eye(ways)[labels]
            inner = np.inf
            for i in range(600):
                scores = weight * affinity @ y - cost
                y = softmax(scores)
                if clamp:
                    y[:shots] = np.eye(ways)[labels]
                bound = (y * (np.log(np.maximum(y, 1e-20)) + cost - weight * affinity @ y)).sum()
                if i > 1 and abs(bound - inner) <= 1e-7 * abs(inner):
                    break
                inner = bound
        assigned = clusters(scores, clamp)
        if len(set(assigned.tolist())) < ways:
            return *old, step + 1, False
        soft = y if weight else np.eye(ways)[assigned]
        energy = (soft * cost).sum() - weight * (soft * (affinity @ soft)).sum()
        if step > 1 and abs(energy - previous) <= 1e-4 * abs(previous):
            return centres, scores, step + 1, True
        previous = energy
    return centres, scores, 100, False


def compare_with_reference(method, tolerance, **options):
    """Centres, scores, number of iterations and convergence of ten episodes; returns the numbers of iterations."""
    episodes = random_episodes(episodes=10, shots=3, queries=32, dim=24, spread=1.2)
    found = method.refine(episodes)
    for e in range(len(episodes)):
        centres, scores, iterations, converged = reference(
            episodes.support[e].numpy(), episodes.support_labels[e].numpy(), episodes.query[e].numpy(), 5, **options)
        np.testing.assert_allclose(found.prototypes[e], centres, atol=tolerance, rtol=0)
        np.testing.assert_allclose(found.logits[e], scores[15:], atol=tolerance, rtol=0)
        assert int(found.iterations[e]) == iterations and bool(found.converged[e]) == converged
    return found.iterations


@pytest.mark.parametrize("clamp", [True, False])
def test_against_a_loop(clamp):
    iterations = compare_with_reference(KMeans(norm="un", clamp_support=clamp), 1e-10, clamp=clamp)
    assert len(iterations.unique()) > 1


def test_objective_never_increases():
    """Sum of squared distances to the own centre, support in its own class, over the iterations."""
    episodes = random_episodes(episodes=6, shots=2, queries=40, spread=1.5)
    method = KMeans(norm="un", tolerance=0.0)
    found = method.refine(episodes, history=True)
    query = episodes.query + episodes.support.mean(1, keepdim=True) - episodes.query.mean(1, keepdim=True)
    own = torch.arange(6).unsqueeze(1), episodes.support_labels
    objective = torch.stack([(episodes.support - centres[own]).square().sum((1, 2))
                             + torch.cdist(query, centres).square().min(-1).values.sum(1) for centres in found.history])
    assert len(objective) > 3 and (objective.diff(dim=0) <= 1e-10).all() and (objective[-1] < objective[0]).any()
    torch.testing.assert_close(found.history[-1], found.prototypes)
    torch.testing.assert_close(found.logits, -torch.cdist(query, found.prototypes).square())


def test_stops_at_a_fixed_point():
    """Without tolerance the clusters no longer change, and every centre is the mean of its members."""
    episodes = random_episodes(episodes=6, shots=2, queries=40, spread=1.2)
    found = KMeans(norm="un", tolerance=0.0).refine(episodes)
    assert found.converged.all()
    query = episodes.query + episodes.support.mean(1, keepdim=True) - episodes.query.mean(1, keepdim=True)
    predicted = found.logits.argmax(-1)
    for e in range(6):
        for n in range(5):
            members = torch.cat([episodes.support[e][episodes.support_labels[e] == n], query[e][predicted[e] == n]])
            torch.testing.assert_close(found.prototypes[e, n], members.mean(0))


def splitting_episode():
    """Class 2 has its two support items on top of classes 0 and 1, so that its cluster loses both of them."""
    support = torch.tensor([[[0.0], [10.0], [0.0], [10.0]]], dtype=torch.float64)
    query = torch.tensor([[[0.5], [9.5], [0.2], [9.8]]], dtype=torch.float64)
    return Episodes(support=support, support_labels=torch.tensor([[0, 1, 2, 2]]), query=query, ways=3)


def test_an_emptied_cluster_ends_with_the_previous_state_and_says_so():
    found = KMeans(norm="un", clamp_support=False).refine(splitting_episode())
    assert not found.converged.any() and found.iterations.tolist() == [1]
    torch.testing.assert_close(found.prototypes[0, :, 0], torch.tensor([0.0, 10.0, 5.0], dtype=torch.float64))
    assert found.logits.argmax(-1).tolist() == [[0, 1, 0, 1]]


def test_clamped_support_keeps_every_cluster():
    found = KMeans(norm="un").refine(splitting_episode())
    assert found.converged.all()
    assert float(found.prototypes[0, 2, 0]) == pytest.approx(5.0)


def test_rotation_and_translation_change_nothing():
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    method = KMeans(norm="un")
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation + 7.0)), method(episodes))


def test_wrong_values_raise():
    with pytest.raises(FewshotError, match="max_iterations=0"):
        KMeans(max_iterations=0)
    with pytest.raises(FewshotError, match="fit"):
        KMeans()(random_episodes())


@pytest.mark.parametrize("clamp_support", [True, False])
def test_many_points_of_few_dimensions_are_clustered_as_those_of_many(clamp_support):
    """Without pairs of points, or with them; appended zeros change no distance."""
    episodes = random_episodes(episodes=4, shots=3, queries=40, dim=6, spread=1.2)  # 55 points
    method = KMeans(norm="un", clamp_support=clamp_support)
    few = method.refine(episodes)
    many = method.refine(episodes.with_features(lambda x: torch.nn.functional.pad(x, (0, 30))))
    torch.testing.assert_close(few.logits, many.logits, rtol=1e-9, atol=1e-9)
    assert torch.equal(few.iterations, many.iterations) and torch.equal(few.converged, many.converged)
    assert few.iterations.max() > 3
