from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.hct_adapt import HCTAdapt


def unit(x):
    return x / x.norm()


def reference(support, labels, query, ways, scale, step_size, iterations):
    means = None
    for _ in range(iterations):
        support = torch.stack([unit(x - support.mean(0)) for x in support])
        query = torch.stack([unit(x - query.mean(0)) for x in query])
        if means is None:
            means = torch.stack([unit(support[labels == n].mean(0)) for n in range(ways)])
        assigned = torch.stack([(scale * torch.stack([torch.dot(z, w) for w in means])).softmax(0) for z in query])
        moved = []
        for n in range(ways):
            own = support[labels == n]
            target = (own.sum(0) + (assigned[:, n:n + 1] * query).sum(0)) / (len(own) + assigned[:, n].sum())
            moved.append(unit((1 - step_size) * means[n] + step_size * target))
        means = torch.stack(moved)
    return scale * query @ means.T, means


@pytest.mark.parametrize("params", [{}, {"scale": 5.0, "step_size": 0.5, "iterations": 3}])
def test_against_a_loop(params):
    episodes = random_episodes(shots=3, queries=22)
    method = HCTAdapt(**params)
    found = method.refine(episodes)
    for e in range(len(episodes)):
        logits, means = reference(episodes.support[e], episodes.support_labels[e], episodes.query[e], 5, method.scale,
                                  method.step_size, method.iterations)
        torch.testing.assert_close(found.logits[e], logits, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.prototypes[e], means, atol=1e-10, rtol=0)


def test_adaptation_improves_on_its_start():
    """More adaptation steps help on clusters with one shot, the situation it is made for."""
    episodes, labels = random_episodes(episodes=40, shots=1, queries=50, dim=32, spread=0.9, with_labels=True)
    accuracy = [float((HCTAdapt(iterations=n, step_size=s)(episodes).argmax(-1) == labels).double().mean())
                for n, s in ((1, 1e-9), (20, 0.2))]
    assert accuracy[1] > accuracy[0] + 0.02


def test_scale_and_rotation_of_the_features_change_nothing():
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    torch.testing.assert_close(HCTAdapt()(episodes.with_features(lambda x: 3 * x @ rotation + 7)), HCTAdapt()(episodes))


def test_every_table_says_that_it_is_a_reconstruction():
    assert any("reconstruction" in note for note in HCTAdapt.assumes) and "econstruction" in HCTAdapt.__doc__


def test_history_has_every_step_and_ends_at_the_prototypes():
    found = HCTAdapt(iterations=4).refine(random_episodes(), history=True)
    assert len(found.history) == 4 and torch.equal(found.history[-1], found.prototypes)
    assert (found.iterations == 4).all() and found.converged.all()


def test_wrong_values_raise():
    for params in ({"scale": 0}, {"step_size": 0}, {"step_size": 1.5}, {"iterations": 0}):
        with pytest.raises(FewshotError, match=next(iter(params))):
            HCTAdapt(**params)
