from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.methods.bases.grid_search import search_grid
from tests.methods.agreement import check_soft
from tests.methods.test_gda import uneven_episodes


def imagenet(raw):
    """The values that the program takes from ImageNet for so many shots."""
    return {"beta": {20: 3.0, 80: 1.5}[len(raw["train_labels"])], "ridge": 0.05}


AGREEMENT = [("proker", imagenet, "vlm_proker")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def test_against_a_loop():
    e = uneven_episodes()
    logits = create_method("proker", beta=2.5, ridge=0.3, text_scale=0.5)(e)
    for i in range(len(e)):
        support, query, texts = (torch.nn.functional.normalize(x[i], dim=-1) for x in (e.support, e.query, e.text))
        kernel = torch.tensor([[torch.exp(-2.5 * (1 - x @ y)) for y in support] for x in support]).double()
        wanted = torch.nn.functional.one_hot(e.support_labels[i], 3).double()
        coefficients = torch.linalg.inv(kernel / 0.3 + torch.eye(6).double()) @ (wanted - 0.5 * support @ texts.T)
        for q, x in enumerate(query):
            near = torch.stack([torch.exp(-2.5 * (1 - x @ y)) for y in support])
            expected = 0.5 * (7 * x @ texts.T - 2) + 7 * near @ coefficients
            assert torch.allclose(logits[i, q], expected, atol=1e-10, rtol=0)


def test_with_little_ridge_it_is_zero_shot():
    e = uneven_episodes()
    little, none = create_method("proker", ridge=1e-9)(e), create_method("zero_shot")(e)
    assert torch.allclose(little, none, atol=1e-7, rtol=0)
    assert not torch.allclose(create_method("proker")(e), none, atol=0.1, rtol=0)


def test_with_a_large_ridge_the_residuals_vote():
    e = uneven_episodes()
    texts, support, query = (torch.nn.functional.normalize(x, dim=-1) for x in (e.text, e.support, e.query))
    residuals = torch.nn.functional.one_hot(e.support_labels, 3) - support @ texts.mT
    votes = torch.exp(-1.5 * (1 - query @ support.mT)) @ residuals
    expected = create_method("zero_shot")(e) + 7 * votes
    assert torch.allclose(create_method("proker", beta=1.5, ridge=1e9)(e), expected, atol=1e-6, rtol=0)


def test_a_small_ridge_is_solved_in_double_precision():
    """Each item twice: the kernel is singular, and only the ridge tells its solutions apart."""
    e = random_episodes(with_text=True)
    e = e.replace(support=e.support.repeat(1, 2, 1), support_labels=e.support_labels.repeat(1, 2))
    method = create_method("proker", ridge=1e-6)
    exact = method(e)
    assert float((method(e.to(torch.float32)) - exact).abs().max()) < 1e-4 * float(exact.abs().max())
    with pytest.raises(FewshotError, match=r"ridge=1e-14 is too small for a support of 20.*give at least 2e-11"):
        create_method("proker", ridge=1e-14)(e)


def test_search_is_that_of_a_loop():
    e, labels = random_episodes(episodes=1, queries=60, with_text=True, with_labels=True, spread=2.0)
    grid = {"beta": [0.5, 3.0], "ridge": [0.001, 0.3, 1.0]}
    found = search_grid(create_method("proker"), e, labels, grid)
    settings = [{"beta": beta, "ridge": ridge} for beta in grid["beta"] for ridge in grid["ridge"]]
    correct = [int((create_method("proker", **each)(e).argmax(-1) == labels).sum()) for each in settings]
    assert found.values == settings[correct.index(max(correct))] and len(set(correct)) > 1


@pytest.mark.parametrize("params", [{"beta": -1.0}, {"ridge": 0.0}, {"text_scale": -1.0}])
def test_refuses_what_makes_no_sense(params):
    with pytest.raises(FewshotError, match=next(iter(params))):
        create_method("proker", **params)
