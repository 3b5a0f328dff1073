from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.bd_cspn import BDCSPN
from fewshot.ops.rectification import aligned, rectified_prototypes
from tests.methods.agreement import check_distances, check_soft

CODE = [("bd_cspn", {"variant": "code", "queries": "unshifted", "temperature": 1.0}, "bdcspn_code"),
        ("bd_cspn", {"variant": "code", "temperature": 1.0}, "bdcspn_shifted_queries")]
PAPER = [("bd_cspn", {"norm": "un", "queries": "unshifted", "temperature": 1.0}, "easyfsl_bdcspn_paper")]
AGREEMENT = CODE + PAPER


@pytest.mark.parametrize("case", CODE, ids=lambda case: case[2])
def test_code_variants_agree_with_official_code(oracles, case):
    check_distances(oracles, *case)


@pytest.mark.parametrize("case", PAPER, ids=lambda case: case[2])
def test_paper_variant_agrees_with_easyfsl(oracles, case):
    check_soft(oracles, *case)


def reference(support, labels, query, ways, scale, paper):
    query = query + support.mean(0) - query.mean(0)
    means = torch.stack([support[labels == n].mean(0) for n in range(ways)])
    weights = torch.zeros(len(support) + len(query), ways, dtype=support.dtype)
    points = torch.cat([support, query])
    for i, x in enumerate(points):
        cos = torch.stack([torch.dot(x, w) / (x.norm() * w.norm()) for w in means])
        n = int(labels[i]) if paper and i < len(support) else int(cos.argmax())
        weights[i, n] = torch.exp(scale * cos[n]) if paper else (scale * cos).softmax(0)[n]
    if paper:
        return torch.stack([(weights[:, n:n + 1] * points).sum(0) / weights[:, n].sum() for n in range(ways)])
    return torch.stack([(weights[:, n:n + 1] * points).sum(0) / (weights[:, n] > 0).sum() for n in range(ways)])


@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_rectified_prototypes_against_a_loop(paper, scale):
    episodes = random_episodes(shots=3, queries=22)
    found = rectified_prototypes(aligned(episodes), scale, paper)
    for e in range(len(episodes)):
        expected = reference(episodes.support[e], episodes.support_labels[e], episodes.query[e], 5, scale, paper)
        torch.testing.assert_close(found[e], expected, atol=1e-12, rtol=0)


def test_large_scales_do_not_overflow():
    episodes = random_episodes(dtype=torch.float32)
    assert torch.isfinite(BDCSPN(norm="un", scale=1000.0)(episodes)).all()


def empty_class_episode():
    """Class 2's mean lies between the others, so that no point, not even its own support, is nearest to it."""
    support = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]], dtype=torch.float64)
    query = torch.tensor([[[2.0, 0.1], [0.1, 2.0], [1.0, 0.05], [0.05, 1.0]]], dtype=torch.float64)
    return Episodes(support=support, support_labels=torch.tensor([[0, 1, 2, 2]]), query=query, ways=3)


def test_a_class_without_members_keeps_its_mean():
    episodes = empty_class_episode()
    for norm, variant in (("un", "code"), ("un", "paper")):
        assert torch.isfinite(BDCSPN(norm=norm, variant=variant)(episodes)).all()
    found = rectified_prototypes(aligned(episodes), normalised=False)
    torch.testing.assert_close(found[0, 2], episodes.support[0, 2:].mean(0))
    assert not torch.allclose(found[0, 0], episodes.support[0, 0])


def test_shift_of_all_queries_is_undone():
    """A domain shift common to the queries has no effect on shifted queries."""
    episodes = random_episodes(shots=3, queries=20)
    moved = Episodes(support=episodes.support, support_labels=episodes.support_labels, query=episodes.query + 3, ways=5)
    method = BDCSPN(norm="un")
    torch.testing.assert_close(method(moved), method(episodes))
    unshifted = BDCSPN(norm="un", queries="unshifted")
    assert (unshifted(moved) - unshifted(episodes)).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_rotation_of_the_features_changes_nothing(variant):
    episodes = random_episodes(shots=3, queries=20)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    method = BDCSPN(norm="l2n", variant=variant)
    torch.testing.assert_close(method(episodes.with_features(lambda x: x @ rotation)), method(episodes))


def test_temperature_changes_confidence_only():
    episodes = random_episodes()
    hot, cold = BDCSPN(norm="l2n", temperature=1.0)(episodes), BDCSPN(norm="l2n")(episodes)
    torch.testing.assert_close(hot * 10, cold)


def test_gradients_reach_the_features():
    episodes = random_episodes(episodes=1)
    query = episodes.query.clone().requires_grad_()
    with_gradient = Episodes(support=episodes.support, support_labels=episodes.support_labels, query=query, ways=5)
    BDCSPN(norm="l2n")(with_gradient).logsumexp(-1).sum().backward()
    assert torch.isfinite(query.grad).all() and query.grad.abs().max() > 0


def test_wrong_values_raise():
    for params, message in (({"variant": "released"}, "variant='released'"), ({"queries": "x"}, "queries='x'"),
                            ({"scale": 0}, "scale=0"), ({"scale": "high"}, "scale='high'"),
                            ({"temperature": 0}, "temperature=0")):
        with pytest.raises(FewshotError, match=message):
            BDCSPN(**params)
    with pytest.raises(FewshotError, match="fit"):
        BDCSPN()(random_episodes())
