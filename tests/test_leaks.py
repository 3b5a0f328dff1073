"""Leaks are caught: three deliberately wrong methods, and every registered one at chance where labels mean nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fewshot.banks import FeatureBank
from fewshot.episodes import Episodes
from fewshot.evaluate import evaluate
from fewshot.methods import METHODS, Method, create_method
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import one_hot, prototypes
from fewshot.run import Run
from fewshot.sampler import EpisodeIndices, EpisodeSampler
from tests.methods.test_contract import QUICK
from tests.methods.test_contract import test_inductive_methods_see_one_query_at_a_time as check_inductive
from tests.methods.test_contract import test_query_order as check_query_order

ALLOWED = 0.03  # the classes are finite samples whose means differ a little, and 120 episodes vary by about 0.004


def noise(seed: int = 5, split: str = "val") -> FeatureBank:
    """Features that say nothing about their labels: no honest method is better than one in five."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1200, 12, generator=generator).abs()
    return FeatureBank(features, torch.arange(12).repeat_interleave(100), name="noise", split=split)


def above_chance(method: Method | str, **parameters) -> float:
    run = Run(episodes=120, method=method if isinstance(method, str) else "protonet", parameters=parameters)
    return evaluate(run, noise(), base_bank=noise(6, "train") if run.needs_base else None,
                    method=None if isinstance(method, str) else method).accuracy.mean - 0.2


@dataclass(frozen=True, eq=False)
class LooksUpTheLabels(Method):
    """Finds the query labels in the frames of whoever calls it."""

    def __call__(self, episodes: Episodes) -> Tensor:
        frame = sys._getframe()
        while frame is not None:
            for value in frame.f_locals.values():
                if isinstance(value, EpisodeIndices) and len(value) == len(episodes):
                    return one_hot(value.query_labels, episodes.ways, episodes.query.dtype)
            frame = frame.f_back
        return -squared_euclidean(episodes.query, prototypes(episodes))


@dataclass(frozen=True, eq=False)
class KnowsTheOrder(Method):
    """Believes that queries come class by class, as unshuffled samplers have them: a look at the labels by another way."""

    def __call__(self, episodes: Episodes) -> Tensor:
        count = episodes.query.shape[1]
        place = torch.arange(count) * episodes.ways // count
        return one_hot(place.expand(len(episodes), -1), episodes.ways, episodes.query.dtype)


@dataclass(frozen=True, eq=False)
class CentresOnTheQueries(Method):
    """Calls itself inductive and subtracts the mean of the query set."""

    setting = "inductive"

    def __call__(self, episodes: Episodes) -> Tensor:
        middle = episodes.query.mean(1, keepdim=True)
        return -squared_euclidean(episodes.query - middle, prototypes(episodes))


@pytest.fixture
def registered(monkeypatch):
    """Register a class under the name "wrong" for one test."""
    def register(cls: type[Method]) -> str:
        monkeypatch.setitem(METHODS._items, "wrong", cls)
        return "wrong"

    return register


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].inputs == "features"
                                  and not create_method(name).needs_backbone])
def test_registered_methods_are_at_chance(name):
    settings = {**QUICK, "putm": {"outer": 2, "inner": 2}, "dn4": {"channels": 3}, "cosoc": {"crops": 2}}.get(name, {})
    assert abs(above_chance(name, **settings)) < ALLOWED


def test_a_method_that_finds_the_query_labels_is_caught():
    assert above_chance(LooksUpTheLabels()) > 0.7


def test_a_method_that_knows_the_order_of_the_queries_gains_nothing_and_is_caught(registered):
    assert abs(above_chance(KnowsTheOrder())) < ALLOWED
    with pytest.raises(AssertionError):
        check_query_order(registered(KnowsTheOrder))


def test_support_among_the_queries_is_caught(monkeypatch):
    """With a sampler that lets support into the queries, any method on noise is far above chance."""
    honest = above_chance("nearest_neighbour")
    plain = EpisodeSampler.indices

    def overlapping(self, start: int = 0, count: int = 1) -> EpisodeIndices:
        drawn = plain(self, start, count)
        query, labels = drawn.query.clone(), drawn.query_labels.clone()
        query[:, :5], labels[:, :5] = drawn.support, drawn.support_labels
        return EpisodeIndices(drawn.support, drawn.support_labels, query, labels, drawn.classes)

    monkeypatch.setattr(EpisodeSampler, "indices", overlapping)
    assert abs(honest) < ALLOWED < above_chance("nearest_neighbour")


def test_an_inductive_method_that_uses_the_other_queries_is_caught(registered):
    with pytest.raises(AssertionError):
        check_inductive(registered(CentresOnTheQueries))
