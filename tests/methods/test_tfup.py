from __future__ import annotations

import math

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from fewshot.ops.text import text_logits
from tests.methods.agreement import check_soft

AGREEMENT = [("tfup", {}, "tfup")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def reference(query, text, scale, m, alpha, beta, sharpness):
    """Lists and numbers of a single episode; logits as a list of lists."""
    def unit(x):
        return [value / math.sqrt(sum(v * v for v in x)) for value in x]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def divergence(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    query, text = [unit(x) for x in query.tolist()], [unit(x) for x in text.tolist()]
    p = []
    for x in query:
        weights = [math.exp(sharpness * dot(x, w)) for w in text]
        p.append([value / sum(weights) for value in weights])
    cache = []  # (query, class)
    for n in range(len(text)):
        candidates = sorted(range(len(query)), key=lambda j: -p[j][n])[: 2 * m]
        cache += [(j, n) for j in sorted(candidates, key=lambda j: sum(divergence(p[j], p[i]) for i in candidates))[:m]]
    logits = []
    for q, x in enumerate(query):
        kl = [divergence(p[q], p[j]) for j, _ in cache]
        row = [scale * dot(x, w) for w in text]
        for (j, n), value in zip(cache, kl, strict=True):
            alike = 2 * (1 - (value - min(kl)) / (max(kl) - min(kl)))
            row[n] += alpha * math.exp(-beta * (1 - alike * dot(x, query[j])))
        logits.append(row)
    return logits


@pytest.mark.parametrize(("least", "most", "m"), [(1, 2, 2), (3, 4, 3), (9, 16, 8)])
def test_against_a_loop(least, most, m):
    e = random_episodes(episodes=2, ways=3, queries=24, with_text=True).replace(logit_scale=7.0)
    method = create_method("tfup", least=least, most=most, alpha=0.8, beta=1.5, sharpness=4.0)
    for i, found in enumerate(method(e)):
        expected = torch.tensor(reference(e.query[i], e.text[i], 7.0, m, 0.8, 1.5, 4.0), dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_without_a_cache_it_is_zero_shot_and_without_text_the_cache():
    e = random_episodes(with_text=True)
    torch.testing.assert_close(create_method("tfup", alpha=0.0)(e), create_method("zero_shot")(e))
    whole, cache = (create_method("tfup", text_scale=scale)(e) for scale in (1.0, 0.0))
    torch.testing.assert_close(whole - cache, text_logits(e))
    assert not torch.equal(cache.argmax(-1), whole.argmax(-1))


def test_the_support_plays_no_part_so_that_new_classes_are_answered_alike():
    e = random_episodes(with_text=True)
    method = create_method("tfup")
    assert torch.equal(method(e.replace(support=e.support + 1)), method(e))
    text = torch.cat([e.text, e.text.flip(-1)], 1)  # twice as many classes as there are in the support
    assert method.transfer(e, e.query, text).shape == (3, 15, 10)
    assert torch.equal(method.transfer(e, e.query, e.text), method(e))


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"beta": -1.0}, {"sharpness": 0.0}, {"share": -1.0}, {"least": 0},
                                   {"least": 20}, {"text_scale": -1.0}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        create_method("tfup", **wrong)
