from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.ops.graphs import (
    bound_updates,
    centred_gram,
    costs_and_graph,
    distances_to_centres_and_each_other,
    knn_affinity,
    squared_distances,
)


def points(episodes=3, count=12, dim=6, seed=0):
    return torch.randn(episodes, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affinity_of(x, neighbours=2, symmetric=False):
    return knn_affinity(squared_distances(centred_gram(x)), neighbours, symmetric)


def energy_of(y, unary, affinity, weight):
    return (y * (y.clamp_min(1e-300).log() + unary - weight * affinity @ y)).sum((1, 2))


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_affinity_against_a_loop(neighbours):
    x = points()
    expected = np.zeros((3, 12, 12))
    for e in range(3):
        for i in range(12):
            distance = [(float((x[e, i] - x[e, j]).square().sum()), j) for j in range(12) if j != i]
            for _, j in sorted(distance)[:neighbours]:
                expected[e, i, j] = 1
    assert np.array_equal(affinity_of(x, neighbours).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_are_neighbours_of_each_other_and_never_of_themselves(dtype):
    """Dropping the nearest column instead of the point itself would link a duplicate to itself here."""
    x = points().to(dtype)
    x[:, 7] = x[:, 2]
    affinity = affinity_of(x)
    assert (affinity.diagonal(dim1=1, dim2=2) == 0).all() and (affinity.sum(-1) == 2).all()
    assert (affinity[:, 2, 7] == 1).all() and (affinity[:, 7, 2] == 1).all()


def test_identical_points_still_get_other_neighbours():
    affinity = affinity_of(torch.zeros(2, 6, 4))
    assert (affinity.diagonal(dim1=1, dim2=2) == 0).all() and (affinity.sum(-1) == 2).all()


def test_fewer_points_than_neighbours():
    assert torch.equal(affinity_of(points(count=2), 5), 1 - torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    assert torch.equal(affinity_of(points(count=1)), torch.zeros(3, 1, 1, dtype=torch.float64))


def test_affinity_leaves_its_input_alone_and_refuses_no_neighbours():
    squared = squared_distances(centred_gram(points()))
    before = squared.clone()
    knn_affinity(squared, 2)
    assert torch.equal(squared, before)
    with pytest.raises(FewshotError, match="neighbours=0"):
        knn_affinity(squared, 0)


def test_symmetric_affinity_is_positive_semidefinite():
    affinity = affinity_of(points(count=30), symmetric=True)
    assert torch.equal(affinity, affinity.transpose(1, 2))
    assert torch.linalg.eigvalsh(affinity).min() > -1e-12
    off = affinity - torch.diag_embed(affinity.diagonal(dim1=1, dim2=2))
    directed = affinity_of(points(count=30))
    torch.testing.assert_close(off, (directed + directed.transpose(1, 2)) / 2)


def test_distances_keep_their_digits_far_from_the_origin():
    x, centres = points(), points(count=4, seed=1)
    exact = distances_to_centres_and_each_other(x, centres)
    far = distances_to_centres_and_each_other((x + 300).float(), (centres + 300).float())
    for found, expected, plain in zip(far, exact, (torch.cdist(x, centres), torch.cdist(x, x)), strict=True):
        torch.testing.assert_close(expected, plain.square(), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)


def reference_updates(unary, affinity, weight, max_iterations, tolerance):
    """One episode, plain numpy."""
    y, previous = softmax(-unary), np.inf
    for i in range(max_iterations):
        y = softmax(-unary + weight * affinity @ y)
        energy = (y * (np.log(np.maximum(y, 1e-20)) + unary - weight * affinity @ y)).sum()
        if i > 1 and abs(energy - previous) <= tolerance * abs(previous):
            return y, i + 1, True
        previous = energy
    return y, max_iterations, False


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("max_iterations", [1, 2, 4, 200])
def test_bound_updates_against_a_loop(max_iterations):
    """Episodes of different difficulty, so that they stop at different steps."""
    x = points(episodes=8, count=25)
    unary = points(episodes=8, count=25, dim=4, seed=1).square() * torch.logspace(-2, 1, 8).view(-1, 1, 1)
    affinity = affinity_of(x)
    found = bound_updates(unary, affinity, 0.7, max_iterations, 1e-6)
    for e in range(8):
        y, iterations, converged = reference_updates(unary[e].numpy(), affinity[e].numpy(), 0.7, max_iterations, 1e-6)
        np.testing.assert_allclose(found.scores[e].softmax(-1), y, atol=1e-12)
        assert int(found.iterations[e]) == iterations and bool(found.converged[e]) == converged
    if max_iterations == 200:
        assert found.converged.all() and len(found.iterations.unique()) > 2


def test_without_weight_the_assignment_is_the_softmax_of_the_costs():
    unary = points(dim=4)
    found = bound_updates(unary, affinity_of(points()), 0.0)
    assert torch.equal(found.scores, -unary) and found.converged.all() and (found.iterations == 3).all()


def test_energy_never_increases_on_a_positive_semidefinite_graph():
    unary, affinity = 0.3 * points(count=30, dim=4, seed=2).square(), affinity_of(points(count=30), symmetric=True)
    energies = [energy_of((-unary).softmax(-1), unary, affinity, 1.5)]
    energies += [energy_of(bound_updates(unary, affinity, 1.5, steps, 0.0).scores.softmax(-1), unary, affinity, 1.5)
                 for steps in range(1, 25)]
    energies = torch.stack(energies)
    assert (energies.diff(dim=0) <= 1e-10).all()
    assert (energies[-1] < energies[0] - 1e-2).all()


def test_labels_are_held_or_only_start():
    x, unary = points(), torch.zeros(3, 12, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 3]]).expand(3, -1)
    held = bound_updates(unary, affinity_of(x), 1.0, labels=labels).scores.softmax(-1)
    assert torch.equal(held[:, :4], torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    started = bound_updates(unary, affinity_of(x), 1.0, 1, labels=labels, hold_labels=False).scores
    start = torch.full((3, 12, 4), 0.25, dtype=torch.float64)
    start[:, :4] = torch.eye(4)
    torch.testing.assert_close(started, affinity_of(x) @ start)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("neighbours", [1, 2, 5, 40])
def test_a_graph_by_its_edges_is_the_same_graph(monkeypatch, neighbours, symmetric):
    """As for episodes of thousands of points, in blocks that do not divide them, with duplicates."""
    x, centres = points(count=30) + 100, points(count=4, seed=1) + 100
    x[:, 17] = x[:, 3]
    monkeypatch.setattr("fewshot.ops.graphs._BLOCK", 7)
    unary, dense = costs_and_graph(x, centres, neighbours, symmetric)
    monkeypatch.setattr("fewshot.ops.graphs._MANY", 29)
    same, edges = costs_and_graph(x, centres, neighbours, symmetric)
    torch.testing.assert_close(same, unary, atol=1e-11, rtol=1e-11)
    y = points(count=4, dim=30, seed=3)
    torch.testing.assert_close(edges.pull(y), y @ dense.transpose(1, 2))
    wanted, found = (bound_updates(unary, graph, 0.7) for graph in (dense, edges))
    torch.testing.assert_close(found.scores, wanted.scores)
    assert torch.equal(found.iterations, wanted.iterations) and torch.equal(found.converged, wanted.converged)


def test_bound_updates_refuse_zero_iterations():
    with pytest.raises(FewshotError, match="max_iterations=0"):
        bound_updates(points(dim=4), affinity_of(points()), 1.0, 0)
