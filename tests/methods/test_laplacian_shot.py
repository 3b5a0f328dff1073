from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.methods.contract import create_method
from fewshot.methods.laplacian_shot import LaplacianShot
from tests.methods.agreement import check_soft

SETTINGS = {"norect": {"rectify": False}, "rect": {}, "rect_unshifted": {"queries": "unshifted"}}
AGREEMENT = [("laplacian_shot", {"laplacian_weight": weight, **params}, f"laplacianshot_{setting}_lmd{weight}")
             for setting, params in SETTINGS.items() for weight in (0.3, 0.7)]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


def reference(support, labels, query, ways, weight, neighbours, rectify, queries):
    """One episode after normalisation; straight loops over points, no matrix identities."""
    means = torch.stack([support[labels == n].mean(0) for n in range(ways)])
    if rectify:
        shifted = query + support.mean(0) - query.mean(0)
        query = shifted if queries == "shifted" else query
        points, sums, counts = torch.cat([support, shifted]), torch.zeros_like(means), torch.zeros(ways)
        for x in points:
            cos = torch.stack([torch.dot(x, w) / (x.norm() * w.norm()) for w in means])
            n = int(cos.argmax())
            sums[n] += (10 * cos).softmax(0)[n] * x
            counts[n] += 1
        means = sums / counts.unsqueeze(-1)
    cost = torch.stack([(query - w).square().sum(-1) for w in means], dim=-1)
    links = []
    for i in range(len(query)):
        distance = (query - query[i]).square().sum(-1)
        distance[i] = torch.inf
        links.append(distance.argsort()[:neighbours])
    y, previous = (-cost).softmax(-1), torch.inf
    for i in range(20):
        y = torch.stack([(weight * y[links[q]].sum(0) - cost[q]).softmax(0) for q in range(len(query))])
        energy = sum(float((y[q] * (y[q].log() + cost[q] - weight * y[links[q]].sum(0))).sum())
                     for q in range(len(query)))
        if i > 1 and abs(energy - previous) <= 1e-6 * abs(previous):
            break
        previous = energy
    return y


@pytest.mark.parametrize(("rectify", "queries"), [(True, "shifted"), (True, "unshifted"), (False, "shifted")])
@pytest.mark.parametrize(("weight", "neighbours"), [(0.7, 2), (1.2, 4)])
def test_against_a_loop(rectify, queries, weight, neighbours):
    episodes = random_episodes(shots=3, queries=22, spread=0.8)
    method = LaplacianShot(norm="l2n", rectify=rectify, queries=queries, laplacian_weight=weight, neighbours=neighbours)
    found = method(episodes).softmax(-1)
    for e in range(len(episodes)):
        unit = [x / x.norm(dim=-1, keepdim=True) for x in (episodes.support[e], episodes.query[e])]
        expected = reference(unit[0], episodes.support_labels[e], unit[1], 5, weight, neighbours, rectify, queries)
        torch.testing.assert_close(found[e], expected, atol=1e-10, rtol=0)


def test_without_laplacian_and_rectification_it_is_protonet():
    episodes = random_episodes(queries=20)
    found = LaplacianShot(norm="un", rectify=False, laplacian_weight=0.0)(episodes)
    torch.testing.assert_close(found, create_method("protonet")(episodes))


@pytest.mark.parametrize("rectify", [True, False])
def test_rotation_of_the_features_changes_nothing(rectify):
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    method = LaplacianShot(norm="l2n", rectify=rectify)
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation)), method(episodes))


def test_without_rectification_translation_changes_nothing():
    episodes = random_episodes(shots=3, queries=20)
    method = LaplacianShot(norm="un", rectify=False)
    torch.testing.assert_close(method(episodes.with_features(lambda x: x + 5.0)), method(episodes))


def test_neighbours_pull_an_ambiguous_query_to_their_class():
    """Nearest prototype puts the last query into class 1; its two neighbours belong clearly to class 0."""
    support = torch.tensor([[[0.0], [4.0]]], dtype=torch.float64)
    query = torch.tensor([[[1.7], [1.8], [5.0], [5.2], [4.8], [2.05]]], dtype=torch.float64)
    episodes = random_episodes(episodes=1, ways=2, shots=1, dim=1)
    episodes = type(episodes)(support=support, support_labels=torch.tensor([[0, 1]]), query=query, ways=2)
    plain = LaplacianShot(norm="un", rectify=False, laplacian_weight=0.0)(episodes).argmax(-1)[0]
    smooth = LaplacianShot(norm="un", rectify=False, laplacian_weight=1.0)(episodes).argmax(-1)[0]
    assert plain.tolist() == [0, 0, 1, 1, 1, 1] and smooth.tolist() == [0, 0, 1, 1, 1, 0]


def test_auto_weight_follows_the_shots():
    for shots, weight in ((1, 0.7), (5, 0.3)):
        episodes = random_episodes(shots=shots, queries=20)
        automatic, fixed = LaplacianShot(norm="l2n"), LaplacianShot(norm="l2n", laplacian_weight=weight)
        assert torch.equal(automatic(episodes), fixed(episodes))


def test_convergence_is_reported():
    episodes = random_episodes(episodes=8, queries=25, spread=1.5)
    short = LaplacianShot(norm="l2n", max_iterations=3, tolerance=0.0).refine(episodes)
    assert not short.converged.any() and (short.iterations == 3).all()
    full = LaplacianShot(norm="l2n", max_iterations=200).refine(episodes)
    assert full.converged.all() and (full.iterations >= 3).all() and len(full.iterations.unique()) > 1


def test_wrong_values_raise():
    with pytest.raises(FewshotError, match="laplacian_weight=-1"):
        LaplacianShot(laplacian_weight=-1)
    with pytest.raises(FewshotError, match="'adaptive'"):
        LaplacianShot(laplacian_weight="adaptive")
    with pytest.raises(FewshotError, match="queries='moved'"):
        LaplacianShot(queries="moved")
    with pytest.raises(FewshotError, match="fit"):
        LaplacianShot()(random_episodes())


def test_fit_takes_the_base_mean():
    bank = FeatureBank(torch.rand(30, 16, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3)
    fitted = LaplacianShot().fit(bank)
    torch.testing.assert_close(fitted.base_mean, bank.features.mean(0))
    assert fitted.needs_base and not LaplacianShot(norm="l2n").needs_base
