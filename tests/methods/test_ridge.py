from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.ridge import Ridge
from fewshot.ops.linear import fit_ridge


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("shots", "dim"), [(1, 16), (5, 16), (3, 64)])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 50.0])
def test_against_scikit_learn(intercept, shots, dim, alpha):
    """More points than dimensions and fewer, unequal shots."""
    full = random_episodes(shots=shots, dim=dim)
    keep = full.support_labels[0] != 4
    keep[4] = True  # class 4 keeps one point
    support, labels = full.support[:, keep], full.support_labels[:, keep]
    model = fit_ridge(support, labels, 5, alpha, intercept)
    for e in range(3):
        official = sklearn.linear_model.Ridge(alpha=alpha, fit_intercept=intercept)
        official.fit(support[e].numpy(), np.eye(5)[labels[e].numpy()])
        np.testing.assert_allclose(model.weights[e], official.coef_, atol=1e-9, rtol=0)
        np.testing.assert_allclose(model(full.query)[e], official.predict(full.query[e].numpy()), atol=1e-9, rtol=0)


def test_normalises_scales_and_uses_the_closed_form():
    episodes = random_episodes(shots=3)
    unit = episodes.with_features(lambda x: x / x.norm(dim=-1, keepdim=True))
    expected = 4 * fit_ridge(unit.support, unit.support_labels, 5, 0.5, True)(unit.query)
    torch.testing.assert_close(Ridge(regularisation=0.5, scale=4.0)(episodes), expected, atol=1e-12, rtol=0)


def test_strong_regularisation_sums_inner_products():
    """W -> Y^T X / regularisation: the score of a class is the sum of the inner products with its points."""
    episodes = random_episodes(shots=2)
    logits = Ridge(regularisation=1e9, scale=1e9, intercept=False, norm="un")(episodes)
    products = episodes.query @ episodes.support.transpose(1, 2)
    expected = torch.stack([(products * (episodes.support_labels == n).unsqueeze(1)).sum(-1) for n in range(5)], -1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("shots", "dim"), [(1, 6), (4, 3)])
def test_gradients(shots, dim):
    episodes = random_episodes(episodes=1, ways=3, shots=shots, queries=3, dim=dim).with_features(lambda x: x + 0.1)

    def logits(support, query):
        return Ridge()(type(episodes)(support=support, support_labels=episodes.support_labels, query=query, ways=3))

    torch.autograd.gradcheck(logits, (episodes.support.requires_grad_(), episodes.query.requires_grad_()))


@pytest.mark.parametrize("wrong", [{"regularisation": 0}, {"scale": -1.0}, {"norm": "l1"}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        Ridge(**wrong)
