from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.methods.protonet import ProtoNet
from fewshot.methods.simple_shot import SimpleShot
from tests.methods.agreement import check_distances, check_soft

LABELS = [("simple_shot", {"norm": norm}, f"simpleshot_{norm}") for norm in ("un", "l2n", "cl2n")]
SOFT = [("simple_shot", {"norm": "un", "metric": "cosine"}, "easyfsl_simpleshot"),
        ("simple_shot", {"norm": "l2n", "metric": "cosine", "scale": 10.0}, "ncc_cosine")]
AGREEMENT = LABELS + SOFT


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    check_distances(oracles, *case)


@pytest.mark.parametrize("case", SOFT, ids=lambda case: case[2])
def test_cosine_agrees_with_official_code(oracles, case):
    check_soft(oracles, *case)


def bank(features):
    return FeatureBank(features, torch.arange(len(features)) % 3)


def test_centring_uses_the_base_mean():
    """Shifting base and episode features together changes nothing; shifting the episode alone does."""
    base, episodes = torch.rand(30, 16, dtype=torch.float64), random_episodes()
    plain = SimpleShot().fit(bank(base))(episodes)
    moved = episodes.with_features(lambda x: x + 3)
    torch.testing.assert_close(SimpleShot().fit(bank(base + 3))(moved), plain, atol=1e-12, rtol=0)
    assert (SimpleShot().fit(bank(base))(moved) - plain).abs().max() > 0.1


def test_scaling_of_one_point_does_not_matter_after_l2():
    episodes = random_episodes(shots=3)
    factors = torch.rand(3, 15, 1, dtype=torch.float64) + 0.5
    scaled = type(episodes)(support=episodes.support * factors, support_labels=episodes.support_labels,
                            query=episodes.query * 2, ways=5)
    torch.testing.assert_close(SimpleShot("l2n")(scaled), SimpleShot("l2n")(episodes), atol=1e-12, rtol=0)


def test_un_is_protonet():
    episodes = random_episodes(shots=3)
    torch.testing.assert_close(SimpleShot("un")(episodes), ProtoNet()(episodes))


def test_needs_the_base_bank_only_for_cl2n():
    assert SimpleShot().needs_base and not SimpleShot("l2n").needs_base
    with pytest.raises(FewshotError, match="fit"):
        SimpleShot()(random_episodes())


@pytest.mark.parametrize("wrong", [{"norm": "l1"}, {"metric": "dot"}, {"scale": 0}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        SimpleShot(**wrong)
