"""`Episodes` refuses what would give a wrong number later."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes


def parts(**changes):
    e = random_episodes(episodes=2, ways=3, shots=2, queries=4)
    return {"support": e.support, "support_labels": e.support_labels, "query": e.query, "ways": 3, **changes}


def nan_query():
    query = parts()["query"].clone()
    query[1, 2, 3] = float("nan")
    return query


@pytest.mark.parametrize(("changes", "message"), [
    ({"support": [[1.0]]}, "support is a list"),
    ({"ways": 1}, "ways=1"), ({"ways": 3.0}, "ways=3.0"),
    ({"query": torch.zeros(4, 16)}, "leading axis"),
    ({"query": torch.zeros(3, 4, 16, dtype=torch.float64)}, "number of episodes"),
    ({"query": torch.zeros(2, 4, 15, dtype=torch.float64)}, "trailing shape"),
    ({"support_labels": torch.zeros(2, 5, dtype=torch.int64)}, r"\[E, S\] = \(2, 6\)"),
    ({"support_labels": torch.zeros(2, 6)}, "labels.long"),
    ({"support_labels": torch.full((2, 6), 3)}, r"0\.\.2"),
    ({"support_labels": torch.zeros(2, 6, dtype=torch.int64)}, "class 1 has no support item in episode 0"),
    ({"query": nan_query()}, r"nan at index \[1, 2, 3\]"),
    ({"query": torch.zeros(2, 0, 16, dtype=torch.float64)}, "empty"),
    ({"query": torch.zeros(2, 4, 16, dtype=torch.int64)}, "floating-point"),
    ({"text": torch.zeros(2, 4, 16)}, "text has shape"),
    ({"query": torch.zeros(2, 4, 16)}, "query has dtype torch.float32 and support torch.float64"),
    ({"query": torch.zeros(2, 4, 16, dtype=torch.uint8)}, r"uint8 images \[E, ., C, H, W\]"),
    ({"unlabelled": torch.zeros(2, 4, 15, dtype=torch.float64)}, "unlabelled has shape"),
])
def test_wrong_input_is_named(changes, message):
    with pytest.raises(FewshotError, match=message):
        Episodes(**parts(**changes))


def test_holds_no_query_labels():
    assert not any("label" in f.name and "query" in f.name for f in dataclasses.fields(Episodes))


def test_frozen_and_sliceable():
    e = Episodes(**parts())
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.ways = 4
    assert len(e) == 2 and len(e[1]) == 1 and len(e[-1]) == 1
    assert torch.equal(e[1].query, e.query[1:]) and torch.equal(e[-1].query, e.query[1:])
    assert torch.equal(e[torch.tensor(1)].query, e.query[1:]) and len(e[torch.tensor([True, False])]) == 1
    assert [len(one) for one in e] == [1, 1], "a loop over episodes ends"
    with pytest.raises(IndexError):
        e[2]


def test_to_changes_floats_and_keeps_labels():
    single = Episodes(**parts()).to(torch.float32)
    assert single.query.dtype == torch.float32 and single.support_labels.dtype == torch.int64


def test_with_features_reaches_every_part():
    unlabelled = torch.ones(2, 7, 16, dtype=torch.float64)
    doubled = Episodes(**parts(unlabelled=unlabelled)).with_features(lambda x: 2 * x)
    assert torch.equal(doubled.unlabelled, 2 * unlabelled) and torch.equal(doubled.query, 2 * parts()["query"])


def test_lengths_of_a_bank_are_dropped_with_the_features_they_belong_to():
    bank = FeatureBank(torch.randn(40, 6), torch.arange(40) % 4)
    episodes, _ = EpisodeSampler(bank, ways=3, shots=2, queries=2).sample(bank, count=5)
    torch.testing.assert_close(episodes.query_lengths, episodes.query.norm(dim=-1))
    assert torch.equal(episodes[2:4].query_lengths, episodes.query_lengths[2:4])
    assert episodes.to(torch.float32).query_lengths is not None
    assert episodes.to(torch.float64).query_lengths is None
    assert episodes.with_features(lambda x: 2 * x).query_lengths is None
    assert dataclasses.replace(episodes, query=2 * episodes.query).query_lengths is None
    with pytest.raises(TypeError):
        Episodes(episodes.support, episodes.support_labels, episodes.query, 3, query_lengths=episodes.query_lengths)
