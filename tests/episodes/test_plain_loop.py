"""Episodes are those of a plain loop over classes and images, and the limits of what can be asked for are exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from fewshot.core.counted_random import counted_uniforms
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeSampler, joined

SIZES = {5: 9, 7: 14, 11: 30, 12: 11, 20: 17, 21: 10, 40: 25}  # class -> images, in a random order
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
MANY = np.random.default_rng(1).permutation(np.repeat(np.arange(40) * 3, np.arange(40) % 7 + 12))
FIELDS = ("support", "support_labels", "query", "query_labels", "classes")


def shuffled(uniform, size):
    """The beginning of a shuffle of range(size) by Fisher and Yates, as far as there are numbers."""
    places = list(range(size))
    for step, number in enumerate(uniform[:size]):
        other = step + int(number * (size - step))
        places[step], places[other] = places[other], places[step]
    return places[: len(uniform)]


def rounded(real, total):
    """Integers near `real` with the sum `total`, by the rule of Veilleux et al."""
    real = list(real)
    while (excess := sum(round(x) for x in real) - total) != 0:
        j = min(range(len(real)), key=lambda i: abs(real[i] - np.floor(real[i]) - 0.5))
        real[j] = np.floor(real[j]) if excess > 0 else np.ceil(real[j])
    return [round(x) for x in real]


def moved(counts, left, share):
    """What is above `left`, one image after the other, to the class of the largest share that has room."""
    missing = sum(max(c - have, 0) for c, have in zip(counts, left, strict=True))
    counts = [min(c, have) for c, have in zip(counts, left, strict=True)]
    for _ in range(missing):
        counts[max((n for n in range(len(counts)) if counts[n] < left[n]), key=lambda n: share[n])] += 1
    return counts


def episode(labels, number, *, ways=(5, 5), shots=(1, 1), queries=15, seed=0, query_distribution="balanced", alpha=2.0,
            k_eff=None, open_classes=0, open_queries=0):
    """Episode `number`, image by image: its five columns as lists."""
    rows = {label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()}
    sizes = {label: len(found) for label, found in rows.items()}
    most = queries if query_distribution == "balanced" else ways[1] * queries
    depth = min(shots[1] + most, max(sizes.values()))
    layout = {"classes": ways[1], "ways": 1, "shots": ways[1], "counts": ways[1], "present": ways[1],
              "query_pool": ways[1] * queries, "items": ways[1] * depth, "order": ways[1] * queries}
    u = {name: x[0] for name, x in counted_uniforms(f"fewshot episodes 1 {seed}", layout, number, 1).items()}
    n = ways[0] + int(u["ways"][0] * (ways[1] - ways[0] + 1))
    classes = [list(sizes)[place] for place in shuffled(u["classes"], len(sizes))][:n]
    taken = [shots[0] + int(x * (shots[1] - shots[0] + 1)) for x in u["shots"][:n]]
    left = [sizes[label] - k for label, k in zip(classes, taken, strict=True)]
    if query_distribution == "balanced":
        counts = [queries] * n
    elif query_distribution == "dirichlet":
        share = stats.gamma.ppf(u["counts"][:n], alpha)
        share /= share.sum()
        counts = moved(rounded(share * n * queries, n * queries), left, share)
    else:
        drawn_from = range(n) if k_eff is None else sorted(range(n), key=lambda j: u["present"][j])[:k_eff]
        pool = [j for j in range(n) if j in drawn_from for _ in range(left[j])]
        hit = [pool[place] for place in shuffled(u["query_pool"], len(pool))[: n * queries]]
        counts = [hit.count(j) for j in range(n)]
    support, query = [], []
    for j, label in enumerate(classes):
        items = [rows[label][place] for place in shuffled(u["items"][j * depth : (j + 1) * depth], sizes[label])]
        support += [(row, j) for row in items[: taken[j]]]
        query += [(row, j) for row in items[taken[j] : taken[j] + counts[j]]]
    query = [query[place] for place in np.argsort(u["order"][: len(query)])]
    if open_classes:
        drawn = open_classes * open_queries
        layout = {"classes": open_classes, "items": drawn, "places": drawn}
        u = {name: x[0] for name, x in counted_uniforms(f"fewshot open queries 1 {seed}", layout, number, 1).items()}
        outside = [label for label in sizes if label not in classes]
        opened = []
        for j, place in enumerate(shuffled(u["classes"], len(outside))):
            items = shuffled(u["items"][j * open_queries : (j + 1) * open_queries], sizes[outside[place]])
            opened += [rows[outside[place]][item] for item in items]
        merged, known = [None] * (len(query) + drawn), iter(query)
        for row, place in zip(opened, shuffled(u["places"], len(merged)), strict=True):
            merged[place] = (row, -1)
        query = [next(known) if found is None else found for found in merged]
    return [list(column) for column in (*zip(*support, strict=True), *zip(*query, strict=True), classes)]


@pytest.mark.parametrize("protocol", [
    {"ways": (3, 3), "shots": (2, 2), "queries": 4, "seed": 8}, {"ways": (2, 5), "shots": (1, 4), "queries": 5},
    {"ways": (7, 7), "shots": (1, 3), "queries": 6}, {"ways": (4, 4), "queries": 3, "open_classes": 3, "open_queries": 2},
    {"ways": (2, 4), "shots": (1, 3), "queries": 2, "open_classes": 2, "open_queries": 9, "seed": -1},
    {"ways": (5, 5), "queries": 8, "query_distribution": "dirichlet"},
    {"ways": (2, 6), "shots": (2, 5), "queries": 7, "query_distribution": "dirichlet", "alpha": 0.4},
    {"ways": (4, 4), "shots": (3, 3), "queries": 4, "query_distribution": "natural"},
    {"ways": (3, 5), "shots": (1, 3), "queries": 4, "query_distribution": "natural"},
    {"ways": (5, 5), "queries": 3, "query_distribution": "k_eff", "k_eff": 3},
    {"ways": (3, 6), "shots": (1, 2), "queries": 2, "query_distribution": "k_eff", "k_eff": 2, "seed": 10**12},
], ids=str)
@pytest.mark.parametrize(("labels", "block"), [(LABELS, 1), (LABELS, 64 << 20), (MANY, 64 << 20)],
                         ids=["alone", "few", "many"])
def test_episodes_are_those_of_a_plain_loop(monkeypatch, protocol, labels, block):
    monkeypatch.setattr("fewshot.episodes.sampler._BLOCK_BYTES", block)  # 1: every episode is drawn alone
    found = {}
    for where, indices in EpisodeSampler(labels, **protocol).buckets(20, 40):
        assert (indices.ways, len(indices)) == (indices.classes.shape[1], len(where))
        found |= {20 + int(e): [getattr(one, name)[0].tolist() for name in FIELDS]
                  for e, one in zip(where, indices.split(1), strict=True)}
    assert found == {number: episode(labels, number, **protocol) for number in range(20, 60)}


def test_what_is_asked_for_where_nothing_is_said():
    labels = np.arange(96) % 6
    given = EpisodeSampler(labels, ways=5, shots=1, queries=15, seed=0, query_distribution="balanced", alpha=2.0, k_eff=None,
                           small_classes="refuse", open_classes=0, open_queries=0)
    plain = EpisodeSampler(labels)
    for name in FIELDS:
        assert torch.equal(getattr(plain.indices(), name), getattr(given.indices(0, 100), name))
    assert (plain.ways, plain.shots, plain.queries, plain.seed, plain.alpha) == ((5, 5), (1, 1), 15, 0, 2.0)
    assert len(plain.sample(FeatureBank(torch.zeros(96, 1), labels))[0]) == 100
    assert sum(len(where) for where, _ in plain.buckets()) == 100


def test_slices_pieces_and_what_is_joined_again():
    whole = EpisodeSampler(LABELS, ways=3, queries=4).indices(0, 7)
    pieces = list(whole.split(3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    for name in FIELDS:
        assert torch.equal(getattr(joined(pieces), name), getattr(whole, name))
        assert torch.equal(getattr(whole[2:5], name), getattr(whole, name)[2:5])
    assert whole in {whole} and whole != whole[:], "compared as objects: tensors have no one truth"
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.query = whole.support


def test_features_are_gathered_into_the_room_given():
    bank = FeatureBank(torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0)), LABELS)
    indices = EpisodeSampler(LABELS, ways=3, shots=2, queries=4).indices(5, 4)
    plain, room = indices.gather(bank), torch.empty(4 * (6 + 12) + 5, 3)
    assert torch.equal(plain.support, bank.features[indices.support]) and plain.support.shape == (4, 6, 3)
    assert torch.equal(plain.query, bank.features[indices.query]) and plain.query.shape == (4, 12, 3)
    assert torch.equal(plain.support_labels, indices.support_labels) and plain.ways == 3
    inside = indices.gather(bank, room)
    assert torch.equal(inside.support, plain.support) and torch.equal(inside.query, plain.query)
    assert inside.support.data_ptr() == room.data_ptr(), "no memory beside the room"
    images = ImageBank(torch.arange(len(LABELS) * 4, dtype=torch.uint8).view(-1, 1, 2, 2), LABELS)
    assert torch.equal(indices.gather(images).query, images.images[indices.query])


# -- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "shape"), [
    (np.zeros((2, 3), int), r"\(2, 3\) and dtype int64"), (np.zeros(3), r"\(3,\) and dtype float64"),
    (np.zeros(0, int), r"\(0,\)")])
def test_labels_that_are_none(labels, shape):
    with pytest.raises(FewshotError, match=rf"labels have shape {shape}.*expected \[M\] integers"):
        EpisodeSampler(labels)


@pytest.mark.parametrize(("least", "message"), [
    ({"ways": 2}, r"ways=1; expected an integer of at least 2"), ({"shots": 1}, "shots=0; .* at least 1"),
    ({"queries": 1}, "queries=0; .* at least 1"), ({"open_classes": 1}, "open_classes=0; .* at least 1"),
    ({"open_queries": 1}, "open_queries=0; .* at least 1")])
def test_the_least_that_can_be_asked_for(least, message):
    others = {"open_classes": 2, "open_queries": 2} if "open_classes" in least or "open_queries" in least else {}
    (name, value), = least.items()
    kept = {"ways": 3, "queries": 4, **others}
    assert len(EpisodeSampler(LABELS, **{**kept, name: np.int64(value)}).indices(0, 3)) == 3
    with pytest.raises(FewshotError, match=f"^{message}"):
        EpisodeSampler(LABELS, **{**kept, name: value - 1})
    for wrong in (True, 2.0, "2"):
        with pytest.raises(FewshotError, match=f"^{name}={wrong!r}"):
            EpisodeSampler(LABELS, **{**kept, name: wrong})


def test_ranges_may_be_lists_and_seeds_anything_whole():
    assert EpisodeSampler(LABELS, ways=[2, 3], shots=(1, 1), queries=2).ways == (2, 3)
    with pytest.raises(FewshotError, match=r"ways=\(2, 3, 4\); expected an integer"):
        EpisodeSampler(LABELS, ways=(2, 3, 4), queries=2)
    with pytest.raises(FewshotError, match=r"seed=0.5; expected an integer$"):
        EpisodeSampler(LABELS, ways=2, queries=2, seed=0.5)


def test_the_most_that_a_class_can_give():
    """9 images of the smallest class are 4 shots and 5 queries, and 7 classes are 7 ways."""
    assert EpisodeSampler(LABELS, ways=7, shots=4, queries=5).indices(0, 2).ways == 7
    with pytest.raises(FewshotError, match=r"class 5 has 9 images; 4 shots and 6 queries need 10 \(1 of 7 classes"):
        EpisodeSampler(LABELS, ways=5, shots=4, queries=6)
    with pytest.raises(FewshotError, match=r"class 5 has 9 images; 5 shots and 6 queries need 11 \(2 of 7 classes"):
        EpisodeSampler(LABELS, ways=5, shots=(2, 5), queries=6)
    kept = EpisodeSampler(LABELS, ways=6, shots=4, queries=6, small_classes="drop").indices(0, 5)
    assert kept.classes.unique().tolist() == [7, 11, 12, 20, 21, 40], "21 has what it takes"
    with pytest.raises(FewshotError, match="ways=7 but only 6 classes have 10 images or more"):
        EpisodeSampler(LABELS, ways=(2, 7), shots=4, queries=6, small_classes="drop")
    with pytest.raises(FewshotError, match="small_classes='keep'; choose 'refuse' or 'drop'"):
        EpisodeSampler(LABELS, small_classes="keep")


@pytest.mark.parametrize(("distribution", "smallest", "left"), [
    ({"query_distribution": "natural"}, 3, 24), ({"query_distribution": "dirichlet"}, 3, 24),
    ({"query_distribution": "k_eff", "k_eff": 2}, 2, 15)])
def test_the_most_that_a_pool_can_give(distribution, smallest, left):
    """Two shots leave 7, 8, 9, 12 ... images of the classes, in order of size."""
    protocol = {"ways": (2, 3), "shots": (1, 2), **distribution}
    list(EpisodeSampler(LABELS, queries=left // 3, **protocol).buckets(0, 3))
    message = f"{left + 3} queries, but the {smallest} smallest classes have only {left} images left"
    with pytest.raises(FewshotError, match=message):
        EpisodeSampler(LABELS, queries=left // 3 + 1, **protocol)


def test_classes_of_a_pool_need_their_shots_alone():
    sampler = EpisodeSampler(LABELS, ways=3, shots=9, queries=1, query_distribution="natural", small_classes="drop")
    assert sampler.indices(0, 50).classes.unique().tolist() == list(SIZES)
    sampler = EpisodeSampler(LABELS, ways=3, shots=10, queries=1, query_distribution="natural", small_classes="drop")
    assert sampler.indices(0, 50).classes.unique().tolist() == list(SIZES)[1:], "class 5 has 9"


@pytest.mark.parametrize(("fields", "message"), [
    ({"alpha": float("inf")}, "alpha=inf"), ({"alpha": float("nan")}, "alpha=nan"),
    ({"alpha": -1}, "alpha=-1; expected a finite number above 0"),
    ({"query_distribution": "k_eff"}, "k_eff=None with query_distribution='k_eff'"),
    ({"query_distribution": "k_eff", "k_eff": 0}, "k_eff=0; it must lie between 1 and ways=2"),
    ({"query_distribution": "k_eff", "k_eff": 3}, "k_eff=3; it must lie between 1 and ways=2"),
    ({"open_classes": 4, "open_queries": 1}, "open_classes=4 beside ways=4, but only 7 classes"),
    ({"open_classes": 1, "open_queries": 10}, "open_queries=10, but class 5 has 9 images")])
def test_limits_of_a_protocol(fields, message):
    with pytest.raises(FewshotError, match=message):
        EpisodeSampler(LABELS, **{"ways": (2, 4), "queries": 2, **fields})


def test_limits_of_a_protocol_are_within_reach():
    for k_eff in (1, 2):
        EpisodeSampler(LABELS, ways=(2, 4), queries=2, query_distribution="k_eff", k_eff=k_eff)
    found = EpisodeSampler(LABELS, ways=4, queries=2, open_classes=3, open_queries=9).indices(0, 20)
    assert (found.query_labels < 0).sum(1).tolist() == [27] * 20


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (0, 0), (3, -2)])
def test_episodes_that_do_not_exist(start, count):
    with pytest.raises(FewshotError, match=f"start={start}, count={count}"):
        EpisodeSampler(LABELS, ways=3, queries=2).indices(start, count)
