from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.core.seeding import derived_seed
from fewshot.methods import create_method
from fewshot.methods.wise_ft import greedy_soup, model_stock
from tests.methods.agreement import check_soft
from tests.methods.trained_heads import check_no_texts, fitted, uneven_episodes, zero_shot_head

OFFICIAL = {"steps": 30, "learning_rate": 0.1, "weight_decay": 0.1, "epsilon": 1e-8}
AGREEMENT = [("wise_ft", {"alpha": 0.5, **OFFICIAL}, "wise_ft_0.5"), ("wise_ft", {"alpha": 1.0, **OFFICIAL}, "wise_ft_1")]
THREE = {"runs": 3, "dropout": 0.25, "alpha": 1.0, "steps": 6}


@pytest.mark.parametrize(("name", "params", "official"), AGREEMENT)
def test_agreement(oracles, name, params, official):
    check_soft(oracles, name, params, official)


def test_interpolated_weights_are_interpolated_logits():
    e = uneven_episodes()
    zero_shot, trained, half = (create_method("wise_ft", alpha=alpha)(e) for alpha in (0.0, 1.0, 0.3))
    torch.testing.assert_close(zero_shot, create_method("zero_shot")(e))
    torch.testing.assert_close(half, 0.7 * zero_shot + 0.3 * trained)
    torch.testing.assert_close(create_method("wise_ft", alpha=1.0, steps=0)(e), zero_shot)


def test_against_a_loop():
    """Three runs with dropout, and their mean."""
    e = uneven_episodes()
    settings = {"steps": 6, "learning_rate": 0.3, "weight_decay": 0.01}
    logits = create_method("wise_ft", runs=3, dropout=0.25, alpha=0.8, text_scale=0.5, seed=2, **settings)(e)
    for i in range(len(e)):
        start = [0.5 * values for values in zero_shot_head(e, i)]
        heads = []
        for run in range(3):
            generator = torch.Generator().manual_seed(derived_seed("wise_ft", 2, run))

            def loss(weight, bias, i=i, generator=generator):
                kept = torch.rand(12, generator=generator, dtype=torch.float64) >= 0.25
                points = normalize(e.support[i], dim=-1) * kept / 0.75
                return cross_entropy(linear(points, weight, bias), e.support_labels[i])

            heads.append(fitted(loss, *start, **settings))
        mean = [0.2 * first + 0.8 * sum(values) / 3 for first, *values in zip(start, *heads, strict=True)]
        torch.testing.assert_close(logits[i], linear(normalize(e.query[i], dim=-1), *mean), atol=1e-9, rtol=0)


def test_greedy_soup_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    heads = torch.randn(6, 4, 5, 7, generator=generator, dtype=torch.float64)
    points = torch.randn(4, 9, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (4, 9), generator=generator)
    counts = (torch.rand(4, 9, generator=generator) < 0.7).double()
    found = greedy_soup(heads, points, torch.nn.functional.one_hot(labels, 5).double(), counts)
    sizes = []
    for i in range(4):
        def loss(members, i=i):
            logits = points[i] @ torch.stack(members).mean(0).T
            return float((cross_entropy(logits, labels[i], reduction="none") * counts[i]).sum())

        ranked = sorted(heads[:, i], key=lambda head: loss([head]))
        members = ranked[:1]
        for head in ranked[1:]:
            if loss([*members, head]) <= loss(members):
                members.append(head)
        sizes.append(len(members))
        torch.testing.assert_close(found[i], torch.stack(members).mean(0))
    assert max(sizes) > 1 and min(sizes) < 6
    nothing = greedy_soup(heads, points, torch.nn.functional.one_hot(labels, 5).double(), torch.zeros_like(counts))
    torch.testing.assert_close(nothing, heads.mean(0))


def test_model_stock_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    start, common = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    heads = start + common + torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    found = model_stock(start, heads)
    for i in range(2):
        moves = [(head - start[i]).flatten() for head in heads[:, i]]
        pairs = [torch.cosine_similarity(moves[a], moves[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2))]
        c = sum(pairs) / 3
        t = 3 * c / (1 + 2 * c)
        torch.testing.assert_close(found[i], t * heads[:, i].mean(0) + (1 - t) * start[i])
    torch.testing.assert_close(model_stock(start, (start + common).expand(2, -1, -1, -1)), start + common)  # all agree
    torch.testing.assert_close(model_stock(start, torch.stack([start + common, start - common])), start)


def test_greedy_soups_listen_to_validation_images_or_hold_items_out():
    e = random_episodes(shots=4, spread=1.5, queries=10, with_text=True)
    greedy, uniform = (create_method("wise_ft", soup=soup, **THREE) for soup in ("greedy", "uniform"))
    held = greedy(e)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    turned = e.replace(support=e.support[:, order], support_labels=e.support_labels[:, order])
    torch.testing.assert_close(greedy(turned), held)
    assert not torch.allclose(uniform(e), held), "nothing was held out"
    # With one shot a class nothing can be: all heads join.
    one = e.replace(support=e.support[:, :5], support_labels=e.support_labels[:, :5])
    torch.testing.assert_close(greedy(one), uniform(one))
    labels = torch.arange(5).repeat(3, 2)
    answers = [greedy(e.replace(validation=e.replace(query=e.query.roll(shift, 1)), validation_labels=labels))
               for shift in range(3)]
    assert not all(torch.allclose(answers[0], other) for other in answers[1:]), "the validation images have no say"


def test_no_texts():
    check_no_texts("wise_ft", steps=20)
    for soup in ("greedy", "stock"):
        check_no_texts("wise_ft", soup=soup, runs=2, dropout=0.2, steps=20)


@pytest.mark.parametrize(("params", "message"), [
    ({"alpha": 1.5}, "alpha"), ({"runs": 0}, "runs"), ({"runs": 2}, "dropout above 0"),
    ({"dropout": 0.5}, "one run and none"),
    ({"dropout": 1.0, "runs": 2}, "dropout"), ({"soup": "thick", "runs": 2, "dropout": 0.1}, "soup"),
    ({"soup": "stock"}, "runs of at least 2")])
def test_wrong_settings(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("wise_ft", **params)
