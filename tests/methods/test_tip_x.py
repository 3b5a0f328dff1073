from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.methods.test_tip_adapter import uneven_episodes, unit


def official_grid_and_range(raw):
    """The official program's values, and the range of the cosines of validation images and support."""
    of_validation, support = (rows / np.linalg.norm(rows, axis=1, keepdims=True)
                              for rows in (raw[f"{part}_features"].astype(np.float64) for part in ("val", "train")))
    cosines = of_validation @ support.T
    return {"alpha": 2.595, "beta": 3.45, "gamma": 12.06, "variant": "official",
            "affinity_range": (float(cosines.min()), float(cosines.max()))}


AGREEMENT = [("tip_x", official_grid_and_range, "vlm_tip_x"), ("tip_x", official_grid_and_range, "vlm_tip_x_first100")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def probabilities(x, texts):
    cosines = torch.tensor([float(unit(x) @ unit(text)) for text in texts], dtype=torch.float64)
    return (cosines / 0.5).softmax(0)


def divergence(p, q):
    return float((p * (p.log() - q.log())).sum())


def test_against_a_loop():
    e = uneven_episodes()
    without = create_method("tip_adapter", alpha=1.7, beta=2.5)(e)
    logits = create_method("tip_x", alpha=1.7, beta=2.5, gamma=0.8)(e)
    for i in range(len(e)):
        support = [(x, probabilities(x, e.text[i])) for x in e.support[i]]
        reach = 1 - min(float(unit(x) @ unit(y)) for x, _ in support for y, _ in support)
        scale = reach / max(divergence(p, q) for _, p in support for _, q in support)
        for q, query in enumerate(e.query[i]):
            expected = without[i, q].tolist()
            for (_, p), label in zip(support, e.support_labels[i].tolist(), strict=True):
                expected[label] += 0.8 * (1 - scale * divergence(probabilities(query, e.text[i]), p))
            assert logits[i, q].tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("params", [{"gamma": 0.0}, {"gamma": 0.0, "variant": "official"}])
def test_without_the_third_term_it_is_tip_adapter(params):
    e = random_episodes(queries=100, with_text=True)
    assert torch.equal(create_method("tip_x", **params)(e), create_method("tip_adapter")(e))


def test_without_texts_nothing_compares_by_them():
    e = uneven_episodes()
    assert torch.equal(create_method("tip_x", text_scale=0.0)(e), create_method("tip_adapter", text_scale=0.0)(e))


def test_with_equal_shots_it_ranks_as_the_official_sum_with_the_same_slope():
    """The official range chosen so that a divergence counts as much as here: the logits then differ by a constant."""
    e = random_episodes(episodes=1, queries=100, with_text=True)
    logits = create_method("tip_x", gamma=3.0)(e)
    p, of_support = ([probabilities(x, e.text[0]) for x in items] for items in (e.query[0], e.support[0]))
    pairs = [float(unit(x) @ unit(y)) for x in e.support[0] for y in e.support[0]]
    scale = (1 - min(pairs)) / max(divergence(x, y) for x in of_support for y in of_support)
    far = [divergence(x, y) for x in p for y in of_support]
    official = create_method("tip_x", gamma=3.0, variant="official", affinity_range=(0.0, scale * (max(far) - min(far))))(e)
    assert torch.allclose(official.softmax(-1), logits.softmax(-1), atol=1e-9)


def test_what_the_official_program_does_with_the_last_queries():
    """Their divergence stays 0: what is added is the same for all classes of equal shots."""
    e = random_episodes(episodes=1, queries=130, with_text=True)
    logits = create_method("tip_x", gamma=3.0, variant="official")(e)
    added = logits - create_method("tip_adapter")(e)
    assert math.isclose(float(added[0, 100:].max()), float(added[0, 100:].min()), rel_tol=1e-12)
    assert float((added[0, :100].amax(-1) - added[0, :100].amin(-1)).min()) > 1e-3


def test_only_the_official_variant_looks_at_other_queries():
    assert create_method("tip_x").setting == "inductive"
    assert create_method("tip_x", variant="official").setting == "transductive"


@pytest.mark.parametrize(("params", "message"), [
    ({"gamma": -1.0}, "gamma"), ({"temperature": 0.0}, "temperature"), ({"variant": "x"}, "sane, official"),
    ({"affinity_range": (0.0, 1.0)}, "variant='official'"),
    ({"affinity_range": (1.0, 0.0), "variant": "official"}, "smallest and the largest"),
])
def test_refuses_what_makes_no_sense(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("tip_x", **params)


def test_the_official_variant_needs_a_block_of_queries():
    with pytest.raises(FewshotError, match="15 queries; the official program compares blocks of 100"):
        create_method("tip_x", variant="official")(random_episodes(with_text=True))
