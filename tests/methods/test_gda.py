from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.methods.bases.grid_search import search_grid
from tests.methods.agreement import check_soft

AGREEMENT = [("gda", {"alpha": 1.0}, "vlm_gda_alpha1"), ("gda", {"alpha": 10.0}, "vlm_gda_alpha10")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def uneven_episodes(dim=16):
    """Three episodes whose classes have 1, 2 and 3 shots."""
    e = random_episodes(ways=3, shots=3, queries=7, dim=dim, with_text=True).replace(logit_scale=7.0, logit_bias=-2.0)
    kept = torch.tensor([0, 1, 2, 4, 5, 8])
    return e.replace(support=e.support[:, kept], support_labels=e.support_labels[:, kept])


@pytest.mark.parametrize("dim", [16, 4])  # more channels than items, and fewer
def test_against_a_loop(dim):
    e = uneven_episodes(dim)
    logits = create_method("gda", alpha=0.3, text_scale=0.5)(e)
    for i in range(len(e)):
        support, labels = torch.nn.functional.normalize(e.support[i], dim=-1), e.support_labels[i]
        means = torch.stack([support[labels == n].mean(0) for n in range(3)])
        centred = support - means[labels]
        covariance = centred.T @ centred / (len(support) - 1)
        precision = dim * torch.linalg.inv((len(support) - 1) * covariance + covariance.trace() * torch.eye(dim).double())
        for q, query in enumerate(torch.nn.functional.normalize(e.query[i], dim=-1)):
            for n, text in enumerate(e.text[i]):
                expected = 0.5 * (7 * query @ text / text.norm() - 2)
                expected += 0.3 * (query @ precision @ means[n] - means[n] @ precision @ means[n] / 2 - math.log(3))
                assert float(logits[i, q, n]) == pytest.approx(float(expected), abs=1e-10)


def test_without_weight_it_is_zero_shot():
    e = uneven_episodes()
    assert torch.allclose(create_method("gda", alpha=0.0)(e), create_method("zero_shot")(e), atol=1e-12, rtol=0)


def test_with_an_isotropic_covariance_it_is_the_nearest_mean():
    """Classes of unit vectors e_1 .. e_D, their negatives, and +-(1, ..., 1) / sqrt D: sum_i c_i c_i' = 2 I. All turned."""
    D = 6
    axes, ones = torch.eye(D).double(), torch.full((1, D), D**-0.5).double()
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    support = torch.cat([axes, -axes, ones, -ones]) @ turn
    labels = torch.tensor([0] * D + [1] * D + [2] * 2)
    e = random_episodes(episodes=1, ways=3, shots=1, queries=9, dim=D, with_text=True)
    e = Episodes(support=support[None], support_labels=labels[None], query=e.query, ways=3, text=e.text)
    means = torch.stack([support[labels == n].mean(0) for n in range(3)])
    query = torch.nn.functional.normalize(e.query[0], dim=-1)
    nearest = query.square().sum(-1, keepdim=True) / 2 - torch.cdist(query, means).square() / 2
    precision = D / (2 + 2 * D / (len(support) - 1))
    expected = create_method("zero_shot")(e)[0] + 0.7 * (precision * nearest - math.log(3))
    assert torch.allclose(create_method("gda", alpha=0.7)(e)[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_any_covariance_the_texts_decide(dtype):
    """One shot each, and three equal ones, whose differences from their mean are rounding."""
    e = random_episodes(shots=1, with_text=True, dtype=dtype)
    alike = e.replace(support=e.support.repeat(1, 3, 1), support_labels=e.support_labels.repeat(1, 3))
    expected = create_method("zero_shot")(e) - 10 * math.log(5)
    for episodes in (e, alike):
        found = create_method("gda", alpha=10.0)(episodes)
        assert torch.allclose(found, expected, atol=100 * 10 * torch.finfo(dtype).eps, rtol=0)  # of logits up to 100


def test_search_is_that_of_a_loop():
    e, labels = random_episodes(episodes=1, queries=60, with_text=True, with_labels=True, spread=2.0)
    alphas = [10.0**power for power in range(-4, 3)]
    found = search_grid(create_method("gda"), e, labels, {"alpha": alphas})
    correct = [int((create_method("gda", alpha=alpha)(e).argmax(-1) == labels).sum()) for alpha in alphas]
    assert found.values == {"alpha": alphas[correct.index(max(correct))]} and found.correct == max(correct)
    assert len(set(correct)) > 1, "nothing to choose"


@pytest.mark.parametrize("params", [{"alpha": -1.0}, {"text_scale": -1.0}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("gda", **params)
