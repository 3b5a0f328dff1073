from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from fewshot.ops.entropy import entropy_slope
from tests.methods.agreement import check_soft

AGREEMENT = [("alpha_tim", {}, "alpha_tim")]


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0], only=("caltech28px_5w5s_dirichlet",), first=4)


@pytest.mark.slow
@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code_on_all_inputs(oracles, case):
    check_soft(oracles, *case)


def test_alpha_near_one_is_tim():
    episodes = random_episodes()
    weights = {"cross_entropy": 0.1, "marginal": 1.0, "conditional": 0.1, "iterations": 100}
    tim = create_method("tim_gd", **weights)(episodes)
    assert torch.equal(create_method("alpha_tim", alpha=1.0, **weights)(episodes), tim)
    torch.testing.assert_close(create_method("alpha_tim", alpha=1.0001, **weights)(episodes), tim, atol=1e-3, rtol=0)
    assert (create_method("alpha_tim", alpha=2.0, **weights)(episodes) - tim).abs().max() > 1e-2


def test_slope_keeps_its_digits_near_one():
    p = torch.tensor([1e-6, 0.2, 0.9], dtype=torch.float32)
    torch.testing.assert_close(entropy_slope(p, 1 + 1e-6), -p.log(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("shots", "alpha"), [(1, 2.0), (3, 5.0), (5, 7.0), (10, 7.0)])
def test_auto_follows_the_shots(shots, alpha):
    episodes = random_episodes(shots=shots)
    assert torch.equal(create_method("alpha_tim", iterations=30)(episodes),
                       create_method("alpha_tim", iterations=30, alpha=alpha)(episodes))


@pytest.mark.parametrize("alpha", [0.0, -1.0, "tuned"])
def test_wrong_alpha_is_named(alpha):
    with pytest.raises(FewshotError, match="alpha="):
        create_method("alpha_tim", alpha=alpha)
