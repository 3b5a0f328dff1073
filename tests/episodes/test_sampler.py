"""Episodes are reproducible, leak-free and distributed as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaincinv

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler, _dirichlet_shares, _published_rounding

LABELS = np.repeat(np.arange(30), 40)
PROTOCOLS = [{}, {"shots": 5}, {"ways": 20, "queries": 7}, {"query_distribution": "dirichlet"},
             {"query_distribution": "natural", "queries": 3}, {"query_distribution": "k_eff", "k_eff": 3, "queries": 7}]
PINNED = {"classes": [[15, 27, 11]], "support": [[623, 1104, 471]], "query": [[455, 1119, 454, 620, 630, 1105]]}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)


def rows(indices):
    return torch.cat([indices.support, indices.query], 1)


@every_protocol
def test_episode_is_a_function_of_seed_and_number(protocol):
    sampler = EpisodeSampler(LABELS, seed=3, **protocol)
    whole, part = sampler.indices(0, 50), EpisodeSampler(LABELS, seed=3, **protocol).indices(17, 5)
    for name in ("support", "support_labels", "query", "query_labels", "classes"):
        assert torch.equal(getattr(whole, name)[17:22], getattr(part, name))
    assert not torch.equal(rows(EpisodeSampler(LABELS, seed=4, **protocol).indices(17, 5)), rows(part))


def test_episodes_are_pinned():
    """A change of these numbers changes everybody's episodes: it needs a new stream name and a changelog entry."""
    indices = EpisodeSampler(LABELS, ways=3, shots=1, queries=2, seed=0).indices(5, 1)
    assert indices.classes.tolist() == PINNED["classes"]
    assert indices.support.tolist() == PINNED["support"]
    assert indices.query.tolist() == PINNED["query"]


@every_protocol
def test_support_and_query_never_overlap_and_labels_are_right(protocol):
    sampler = EpisodeSampler(LABELS, **protocol)
    indices = sampler.indices(0, 400)
    ordered = rows(indices).sort(1).values
    assert (ordered[:, 1:] != ordered[:, :-1]).all(), "an image occurs twice in an episode"
    labels = torch.from_numpy(LABELS)
    assert torch.equal(labels[indices.support], indices.classes.gather(1, indices.support_labels))
    assert torch.equal(labels[indices.query], indices.classes.gather(1, indices.query_labels))
    assert all(len(set(row.tolist())) == indices.ways for row in indices.classes)
    assert indices.query.shape[1] == sampler.queries * indices.ways


def test_balanced_counts():
    indices = EpisodeSampler(LABELS, ways=5, shots=3, queries=4).indices(0, 200)
    for labels, count in ((indices.support_labels, 3), (indices.query_labels, 4)):
        assert all((torch.bincount(row, minlength=5) == count).all() for row in labels)


def test_order_of_the_queries_says_nothing():
    labels = EpisodeSampler(LABELS, ways=5, queries=8).indices(0, 3000).query_labels
    share = torch.stack([(labels == n).double().mean(0) for n in range(5)])  # [N, Q]
    assert (share - 0.2).abs().max() < 0.04  # 3000 draws: standard deviation 0.0073


def test_every_item_and_class_is_equally_likely():
    indices = EpisodeSampler(LABELS, ways=5, shots=2, queries=3).indices(0, 6000)
    for drawn in (indices.support, indices.query):
        counts = torch.bincount(drawn.reshape(-1), minlength=len(LABELS)).double()
        expected = drawn.numel() / len(LABELS)
        # Chi-square over 1200 cells: mean 1199, standard deviation 49.
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 1199) < 5 * 49


def test_dirichlet_proportions():
    indices = EpisodeSampler(np.repeat(np.arange(20), 100), query_distribution="dirichlet").indices(0, 4000)
    share = torch.stack([torch.bincount(row, minlength=5) for row in indices.query_labels]).double() / 75
    assert torch.allclose(share.mean(0), torch.full((5,), 0.2, dtype=torch.float64), atol=0.01)
    # Var of one component of Dir(2,2,2,2,2) is 0.2 * 0.8 / 11.
    assert abs(float(share.var(0).mean()) - 0.16 / 11) < 0.001


@pytest.mark.parametrize("alpha", [1e-2, 1e-3, 1e-5, 1e-300, 1e-310])
def test_dirichlet_of_a_small_alpha_gives_all_queries_to_one_class(alpha):
    labels = np.repeat(np.arange(20), 100)
    indices = EpisodeSampler(labels, queries=3, query_distribution="dirichlet", alpha=alpha).indices(0, 4000)
    counts = torch.nn.functional.one_hot(indices.query_labels, 5).sum(1)
    assert (counts.sum(1) == 15).all() and (counts.amax(1) == 15).float().mean() > (0.8 if alpha == 1e-2 else 0.98)
    assert (counts.argmax(1).bincount(minlength=5) / 4000 - 0.2).abs().max() < 0.03  # every class as often
    ways = EpisodeSampler(labels, (2, 5), queries=3, query_distribution="dirichlet", alpha=alpha)
    assert all((i.query_labels < i.ways).all() for _, i in ways.buckets(0, 200))


def test_dirichlet_shares_of_logarithms_are_those_of_the_quantiles():
    """A factor common to all numbers changes no proportions of tiny quantiles, and makes them too small for a float."""
    uniform, alpha = np.array([[0.9, 0.8999, 0.5]]), 0.002
    assert (gammaincinv(alpha, uniform) > 0).all() and (gammaincinv(alpha, uniform * 0.1) == 0).all()
    quantiles = _dirichlet_shares(uniform, alpha, np.ones((1, 3), bool))
    np.testing.assert_allclose(_dirichlet_shares(uniform * 0.1, alpha, np.ones((1, 3), bool)), quantiles, rtol=1e-6)
    assert 0.4 < quantiles[0, 1] < 0.5


def test_dirichlet_moves_what_a_class_does_not_have():
    indices = EpisodeSampler(np.repeat(np.arange(10), 18), query_distribution="dirichlet").indices(0, 500)
    counts = torch.stack([torch.bincount(row, minlength=5) for row in indices.query_labels])
    assert counts.max() == 17 and (counts.sum(1) == 75).all()


def test_k_eff_classes_are_random_labels():
    indices = EpisodeSampler(LABELS, ways=6, queries=4, query_distribution="k_eff", k_eff=2).indices(0, 2000)
    present = torch.stack([torch.bincount(row, minlength=6) > 0 for row in indices.query_labels])
    assert (present.sum(1) <= 2).all()
    assert (present.double().mean(0) - 1 / 3).abs().max() < 0.06


def test_natural_follows_class_sizes():
    labels = np.repeat([0, 1], [100, 300])
    indices = EpisodeSampler(labels, ways=2, queries=10, query_distribution="natural").indices(0, 3000)
    original = indices.classes.gather(1, indices.query_labels)
    assert abs(float((original == 1).double().mean()) - 299 / 398) < 0.01


def test_variable_ways_and_shots_come_in_buckets():
    sampler = EpisodeSampler(LABELS, ways=(3, 6), shots=(1, 4), queries=5, seed=1)
    seen = {}
    for where, indices in sampler.buckets(0, 300):
        seen.update({int(i): indices[e : e + 1] for e, i in enumerate(where)})
    assert sorted(seen) == list(range(300))
    assert {e.ways for e in seen.values()} == {3, 4, 5, 6}
    shots = torch.cat([torch.bincount(e.support_labels[0], minlength=e.ways) for e in seen.values()])
    assert set(shots.tolist()) == {1, 2, 3, 4}
    where, alone = next(iter(sampler.buckets(123, 1)))
    assert torch.equal(rows(alone), rows(seen[123]))
    with pytest.raises(FewshotError, match="different shapes"):
        sampler.indices(0, 300)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(8, 30), min_size=4, max_size=12), st.integers(2, 4), st.integers(1, 3), st.integers(1, 5),
       st.sampled_from(["balanced", "dirichlet", "natural"]), st.integers(0, 10**9))
def test_unequal_class_sizes(sizes, ways, shots, queries, distribution, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        sampler = EpisodeSampler(labels, ways=ways, shots=shots, queries=queries, seed=seed, query_distribution=distribution)
    except FewshotError:
        assert distribution != "balanced"  # 8 images always hold 3 shots and 5 queries; only a pool can be too small
        return
    indices = sampler.indices(seed % 1000, 7)
    ordered = rows(indices).sort(1).values
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
    assert (np.asarray(labels)[indices.query] == indices.classes.gather(1, indices.query_labels).numpy()).all()


@pytest.mark.parametrize(("settings_", "message"), [
    ({"ways": 31}, "only 30 classes"), ({"queries": 40}, "class 0 .*40 images"), ({"shots": 0}, "shots=0"),
    ({"ways": 1}, "ways=1"), ({"query_distribution": "dirichlett"}, "did you mean 'dirichlet'"),
    ({"k_eff": 3}, "k_eff belongs to"), ({"query_distribution": "k_eff", "k_eff": 6}, "between 1 and"),
    ({"alpha": 0.0}, "above 0"), ({"ways": (6, 3)}, "low end"), ({"queries": 2.5}, "queries=2.5"),
    ({"open_classes": 3}, "open_queries=0"), ({"open_queries": 3}, "open_classes=0"),
    ({"open_classes": 26, "open_queries": 1}, "only 30 classes"), ({"open_classes": 1, "open_queries": 41}, "40 images"),
    ({"ways": 20, "queries": 39, "query_distribution": "k_eff", "k_eff": 2}, "only 78 images left"),
])
def test_impossible_requests_are_refused(settings_, message):
    with pytest.raises(FewshotError, match=message):
        EpisodeSampler(LABELS, **settings_)


@every_protocol
def test_open_queries_leave_the_episodes_as_they_are(protocol):
    plain = EpisodeSampler(LABELS, seed=3, **protocol).indices(0, 60)
    sampler = EpisodeSampler(LABELS, seed=3, open_classes=4, open_queries=3, **protocol)
    found = sampler.indices(0, 60)
    known = found.query_labels >= 0
    assert torch.equal(found.support, plain.support) and torch.equal(found.classes, plain.classes)
    assert torch.equal(found.query[known].view(60, -1), plain.query)
    assert torch.equal(found.query_labels[known].view(60, -1), plain.query_labels)
    opened = torch.from_numpy(LABELS)[found.query[~known].view(60, 12)]  # [E, 12] bank classes
    assert not (opened[:, :, None] == found.classes[:, None, :]).any()
    assert all((torch.bincount(row)[row.unique()] == 3).all() and len(row.unique()) == 4 for row in opened)
    ordered = rows(found).sort(1).values
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
    part = sampler.indices(17, 5)
    assert torch.equal(part.query, found.query[17:22]) and torch.equal(part.query_labels, found.query_labels[17:22])


def test_open_queries_are_equally_likely_everywhere():
    found = EpisodeSampler(LABELS, ways=5, queries=3, open_classes=2, open_queries=5).indices(0, 6000)
    opened = found.query_labels < 0
    assert (opened.double().mean(0) - 0.4).abs().max() < 5 * (0.24 / 6000) ** 0.5, "of every place in the order"
    counts = torch.bincount(found.query[opened], minlength=len(LABELS)).double()
    expected = counts.sum() / len(LABELS)
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 1199) < 6 * 49
    variable = EpisodeSampler(LABELS, ways=(3, 6), queries=3, open_classes=2, open_queries=5, seed=1)
    for where, indices in variable.buckets(0, 50):
        for e, number in enumerate(where.tolist()):
            assert torch.equal(next(variable.buckets(number, 1))[1].query[0], indices.query[e])


def test_refusal_names_the_class_and_dropping_leaves_it_out():
    bank = FeatureBank(torch.zeros(63, 2), [0] * 20 + [1] * 3 + [2] * 20 + [3] * 20, ("cat", "dog", "elk", "fox"))
    with pytest.raises(FewshotError, match=r"class 1 \(dog\) has 3 images"):
        EpisodeSampler(bank, ways=3, queries=5)
    kept = EpisodeSampler(bank, ways=3, queries=5, small_classes="drop").indices(0, 50).classes
    assert set(kept.flatten().tolist()) == {0, 2, 3}


def test_sample_returns_features_of_the_rows():
    bank = FeatureBank(torch.arange(1200.0).unsqueeze(1), LABELS)
    sampler = EpisodeSampler(bank, ways=4, shots=2, queries=3)
    episodes, labels = sampler.sample(bank, start=7, count=5)
    indices = sampler.indices(7, 5)
    assert torch.equal(episodes.support[..., 0].long(), indices.support) and torch.equal(labels, indices.query_labels)
    for other in (FeatureBank(torch.zeros(3, 1), [0, 1, 2]), FeatureBank(torch.zeros(1200, 1), LABELS[::-1].copy())):
        with pytest.raises(FewshotError, match="1200 items.*build it from this bank"):
            sampler.sample(other)


def test_published_rounding_matches_the_rule_written_as_a_loop():
    rng = np.random.default_rng(0)
    real = rng.dirichlet([2.0] * 5, 500) * 75
    expected = []
    for row in real.copy():
        while np.rint(row).sum() != 75:
            j = np.argmin(np.abs(row - np.floor(row) - 0.5))
            row[j] = np.floor(row[j]) if np.rint(row).sum() > 75 else np.ceil(row[j])
        expected.append(np.rint(row))
    assert (_published_rounding(real, np.full(500, 75)) == np.array(expected)).all()
