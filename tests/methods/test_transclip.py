from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods import create_method
from tests.methods.agreement import check_soft
from tests.oracle import load_inputs

AGREEMENT = [("transclip", {"zero_shot": True}, "transclip_zero_shot"),
             ("transclip", {"variant": "official", "gamma": 0.2}, "transclip_few_shot")]


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def reference(e, i, gamma, few, rounds, sweeps, k, scale):
    """Lists and numbers of a single episode; soft labels [Q, N]."""
    def unit(x):
        return np.asarray(x, dtype=float) / np.linalg.norm(x)

    q, s, w = ([unit(x) for x in points[i].numpy()] for points in (e.query, e.support, e.text))
    labels, ways, dim = e.support_labels[i].tolist() if few else [], len(w), len(w[0])
    s = s if few else []
    y = []
    for x in q:
        weights = [math.exp(scale * float(x @ text)) for text in w]
        y.append([value / sum(weights) for value in weights])
    z = [list(row) for row in y]
    if few:
        mu = [unit(sum(x for x, label in zip(s, labels, strict=True) if label == n)) for n in range(ways)]
    else:
        mu = [unit(sum(z[j][n] * q[j] for j in sorted(range(len(q)), key=lambda j: -z[j][n])[:8])) for n in range(ways)]
    var = np.full(dim, 1 / dim)
    edges = []  # (row: query or support, query, cosine)
    for row, x in [*((("q", j), x) for j, x in enumerate(q)), *((("s", j), x) for j, x in enumerate(s))]:
        near = sorted((j for j in range(len(q)) if row != ("q", j)), key=lambda j: -float(x @ q[j]))[:k]
        edges += [(row, j, float(x @ q[j])) for j in near]
    power = 0.5 if few else 1.0
    while True:
        like = [[-0.5 * float(((x - m) ** 2 / var).sum()) for m in mu] for x in q]
        for _ in range(sweeps):
            new = []
            for j in range(len(q)):
                score = [power * math.log(y[j][n]) + like[j][n] / 50 for n in range(ways)]
                for (kind, at), to, cosine in edges:
                    if to == j:
                        other = z[at] if kind == "q" else [float(labels[at] == n) for n in range(ways)]
                        score = [value + cosine * other[n] / (2 * k) for n, value in enumerate(score)]
                    if (kind, at) == ("q", j):
                        score = [value + cosine * z[to][n] / (2 * k) for n, value in enumerate(score)]
                top = max(score)
                weights = [math.exp(value - top) for value in score]
                new.append([value / sum(weights) for value in weights])
            z = new
        if rounds == 0:
            return np.array(z)
        rounds -= 1
        of_support = 50 * gamma / max(1, len(s))
        total, spread, sums = 0.0, np.zeros(dim), []
        for n in range(ways):
            sums.append(sum(z[j][n] / len(q) * q[j] for j in range(len(q))) +
                        sum((of_support * x for x, label in zip(s, labels, strict=True) if label == n), np.zeros(dim)))
        mu = [unit(x) for x in sums]
        for n in range(ways):
            for j in range(len(q)):
                spread += z[j][n] / len(q) * (q[j] - mu[n]) ** 2
                total += z[j][n] / len(q)
            for x, label in zip(s, labels, strict=True):
                if label == n:
                    spread += of_support * (x - mu[n]) ** 2
                    total += of_support
        var = spread / total


@pytest.mark.parametrize(("few", "gamma"), [(False, 0.0), (True, 0.02)])
def test_against_a_loop(few, gamma):
    e = random_episodes(episodes=2, ways=3, queries=12, spread=0.8, with_text=True).replace(logit_scale=8.0)
    method = create_method("transclip", zero_shot=not few, gamma=gamma, iterations=3, sweeps=2)
    found = method(e).softmax(-1)
    for i in range(2):
        np.testing.assert_allclose(found[i], reference(e, i, gamma, few, 3, 2, 3, 8.0), atol=1e-9)


def test_without_graph_one_query_is_its_text_times_its_likelihood():
    e = random_episodes(episodes=2, queries=1, with_text=True).replace(logit_scale=8.0)
    with pytest.warns(UserWarning, match="1 query"):
        found = create_method("transclip", neighbours=0, iterations=0)(e).log_softmax(-1)
    q, mu = (torch.nn.functional.normalize(x, dim=-1) for x in (e.query, torch.stack(
        [torch.nn.functional.normalize(e.support, dim=-1)[:, e.support_labels[0] == n].sum(1) for n in range(5)], 1)))
    text = create_method("zero_shot")(e).log_softmax(-1)
    likelihood = -0.5 * ((q - mu) ** 2).sum(-1).unsqueeze(1) * q.shape[-1] / 50
    torch.testing.assert_close(found, (0.5 * text + likelihood).log_softmax(-1), atol=1e-10, rtol=0)


def test_a_large_weight_of_the_texts_is_zero_shot():
    e = random_episodes(with_text=True)
    found = create_method("transclip", text_weight=1e8)(e) / 1e8
    torch.testing.assert_close(found.log_softmax(-1), create_method("zero_shot")(e).log_softmax(-1), atol=1e-5, rtol=0)


def test_what_it_brings_to_weak_texts(oracles):
    """Names alone, on the 250 queries of 20 classes: more right with all queries together."""
    e, raw = load_inputs(oracles, "caltech_vlm_20c4s")
    labels = torch.tensor(raw["test_labels"])
    noise = torch.randn(e.text.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weak = e.replace(text=e.text + 0.1 * noise)
    alone, together = ((create_method(name, **params)(weak)[0].argmax(-1) == labels).double().mean()
                       for name, params in (("zero_shot", {}), ("transclip", {"zero_shot": True})))
    assert together > alone + 0.03


@pytest.mark.parametrize("wrong", [{"gamma": -0.1}, {"iterations": -1}, {"sweeps": 0}, {"variant": "other"},
                                   {"neighbours": -1}, {"text_weight": -1.0}])
def test_wrong_values(wrong):
    with pytest.raises(FewshotError, match=next(iter(wrong))):
        create_method("transclip", **wrong)
