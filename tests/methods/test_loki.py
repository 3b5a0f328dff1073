from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.distances import l2_normalise
from tests.methods.agreement import check_soft
from tests.methods.test_conse import KNOWN, with_projection

AGREEMENT = [("loki", {}, "loki")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


@pytest.mark.parametrize(("power", "temperature"), [(2.0, 1.0), (1.0, 0.5), (4.0, 1.0)])
def test_against_a_loop(power, temperature):
    e = with_projection()
    logits = create_method("loki", power=power, temperature=temperature, scale=3.0)(e)
    for i in range(len(e)):
        known = [e.projection[i, j] + e.projection[i, -1] for j in range(KNOWN)]
        for q, scores in enumerate(e.query[i].tolist()):
            weights = [math.exp(score / temperature) for score in scores]
            for n in range(5):
                expected = sum(w / sum(weights) * float((e.text[i, n] - t).norm()) ** power for w, t in
                               zip(weights, known, strict=True))
                assert float(logits[i, q, n]) == pytest.approx(-3 * expected, rel=1e-9)


def test_the_second_power_of_unit_vectors_is_conse():
    e = with_projection(bias=0.0)
    e = e.replace(text=l2_normalise(e.text), projection=l2_normalise(e.projection))
    found, conse = create_method("loki")(e), create_method("conse")(e)
    # -sum p |t_n - t_j|^2 = 2 |m| cos(m, t_n) - 2 with the mean m, whose length is the query's own.
    mean = e.query.softmax(-1) @ e.projection[:, :-1]
    torch.testing.assert_close(found, 2 * mean.norm(dim=-1, keepdim=True) * conse / 7 - 2)
    assert torch.equal(found.argsort(-1), conse.argsort(-1))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_equal_distances_between_the_known_classes_are_the_most_probable_one(power):
    """Known classes at one distance from each other, and asked for themselves: argmax, whatever the power."""
    e = random_episodes(dim=5, queries=40)
    e = e.replace(text=torch.eye(5, dtype=torch.float64).expand(3, -1, -1))
    logits = create_method("loki", power=power)(e)
    assert torch.equal(logits.argmax(-1), e.query.argmax(-1))
    torch.testing.assert_close(logits, (e.query.softmax(-1) - 1) * 2 ** (power / 2))


@pytest.mark.parametrize("name", ["power", "temperature", "scale"])
def test_refusals(name):
    with pytest.raises(FewshotError, match=name):
        create_method("loki", **{name: 0.0})
