from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.features.transforms import parse_transforms
from fewshot.methods import METHODS, create_method, method_parameters
from fewshot.methods.soft_kmeans import EasyTransductive, SoftKMeans
from tests.methods.agreement import check_soft

AGREEMENT = [("easy_transductive", {}, "easy_softkmeans")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


def reference(support, labels, query, ways, scale, iterations):
    means = torch.stack([support[labels == n].mean(0) for n in range(ways)])
    for iteration in range(iterations):
        distances = torch.stack([((query - w) ** 2).sum(-1) for w in means], -1)
        soft = (-scale * distances).softmax(-1)
        if iteration < iterations - 1:
            means = torch.stack([(support[labels == n].sum(0) + (soft[:, n:n + 1] * query).sum(0)) /
                                 ((labels == n).sum() + soft[:, n].sum()) for n in range(ways)])
    return -scale * distances, means


@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_against_a_loop(dim, iterations):
    """Below and above the dimension where the iterations are made in the span of the points; unequal shots."""
    full = random_episodes(shots=3, dim=dim, queries=17)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 7, 10, 12])
    episodes = type(full)(support=full.support[:, kept], support_labels=full.support_labels[:, kept], query=full.query,
                          ways=5)
    found = SoftKMeans(scale=0.1, iterations=iterations, tolerance=0, norm="un").refine(episodes, history=True)
    assert found.iterations.tolist() == [iterations] * 3 and found.converged.all() and len(found.history) == iterations
    for e in range(3):
        logits, means = reference(episodes.support[e], episodes.support_labels[e], episodes.query[e], 5, 0.1,
                                  iterations)
        torch.testing.assert_close(found.logits[e], logits, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.prototypes[e], means, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.history[-1][e], means, atol=1e-10, rtol=0)


def test_the_objective_never_increases():
    """EM of equal spherical Gaussians: support distances plus the soft minimum of the query distances."""
    episodes = random_episodes(shots=2, queries=40, dim=64, spread=1.5)
    scale = 0.2
    history = SoftKMeans(scale=scale, norm="un", tolerance=0, iterations=30).refine(episodes, history=True).history

    def objective(means):
        own = means.gather(1, episodes.support_labels.unsqueeze(-1).expand_as(episodes.support))
        soft = torch.logsumexp(-scale * torch.cdist(episodes.query, means).square(), -1).sum(-1) / scale
        return (episodes.support - own).square().sum((1, 2)) - soft

    values = torch.stack([objective(means) for means in history])
    assert (values[1:] <= values[:-1] + 1e-9).all() and (values[-1] < values[0] - 1e-3).all()


def test_stops_episode_by_episode_at_a_fixed_point():
    hard, easy = random_episodes(spread=1.0, queries=30), random_episodes(spread=0.02, queries=30)
    both = type(hard)(support=torch.cat([hard.support, easy.support]), query=torch.cat([hard.query, easy.query]),
                      support_labels=torch.cat([hard.support_labels, easy.support_labels]), ways=5)
    method = SoftKMeans(iterations=2000, tolerance=1e-9)
    found = method.refine(both)
    assert found.converged.all() and found.iterations[3:].max() < found.iterations[:3].min()
    further = SoftKMeans(iterations=int(found.iterations.max()) + 50, tolerance=0)(both)
    torch.testing.assert_close(found.logits, further, atol=1e-6, rtol=0)
    assert not SoftKMeans(iterations=3, tolerance=1e-9).refine(hard).converged.any()


def test_history_holds_stopped_episodes_still():
    found = SoftKMeans(tolerance=1e-4).refine(random_episodes(queries=30), history=True)
    assert len(found.history) == int(found.iterations.max())
    for e, last in enumerate(found.iterations.tolist()):
        torch.testing.assert_close(found.history[last - 1][e], found.prototypes[e])
        torch.testing.assert_close(found.history[-1][e], found.prototypes[e])


def test_me_is_centring_and_l2():
    episodes = random_episodes(shots=2)
    chain = parse_transforms("center_episode,l2")
    torch.testing.assert_close(SoftKMeans(norm="un")(chain(episodes)), SoftKMeans()(episodes), atol=1e-12, rtol=0)


def test_rotation_and_translation_change_nothing():
    episodes = random_episodes(shots=2, dim=64)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    moved = episodes.with_features(lambda x: x @ rotation + 2)
    torch.testing.assert_close(SoftKMeans()(moved), SoftKMeans()(episodes), atol=1e-6, rtol=0)


def test_the_preset_differs_in_its_defaults_only():
    assert METHODS["easy_transductive"] is EasyTransductive
    ours, preset = method_parameters("soft_kmeans"), method_parameters("easy_transductive")
    assert preset == {**ours, "iterations": 30, "tolerance": 0.0}
    assert create_method("easy_transductive", scale=20.0).scale == 20.0


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"iterations": 0}, {"tolerance": -1.0}, {"norm": "l1"}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        SoftKMeans(**wrong)
