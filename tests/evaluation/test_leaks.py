"""Deliberately wrong methods are caught by `check_method`; tests/methods/test_contract.py checks the registered ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fewshot.contract.check_method import candidate_of, check_method, check_promise
from fewshot.contract.checks import PROMISES
from fewshot.contract.synthetic import above_chance
from fewshot.core.errors import FewshotError
from fewshot.episodes.sampler import EpisodeIndices, EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.methods import Method
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import one_hot, prototypes


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


@dataclass(frozen=True, eq=False)
class ReshapesTheSupport(Method):
    """Expects a full block of shots, as many implementations do."""

    paper = "this file"

    def __call__(self, episodes: Episodes) -> Tensor:
        means = episodes.support.reshape(len(episodes), -1, episodes.ways, episodes.support.shape[2]).mean(1)
        return -squared_euclidean(episodes.query, means)


@pytest.mark.parametrize(("method", "first"), [
    (LooksUpTheLabels, "chance"), (KnowsTheOrder, "class_relabelling"), (CentresOnTheQueries, "inductive"),
    (ReshapesTheSupport, "class_relabelling")])
def test_wrong_methods_are_caught(method, first):
    with pytest.raises(FewshotError, match=f"{method.__name__} does not keep the promise '{first}'"):
        check_method(method())


@pytest.mark.parametrize(("method", "name", "found"), [
    (LooksUpTheLabels, "chance", "distance of the accuracy from 1/5 is 0.8, allowed is at most 0.03"),
    (KnowsTheOrder, "query_order", "largest change of a probability is 0.2"),
    (KnowsTheOrder, "learns", "share of wrong answers is 0."),
    (CentresOnTheQueries, "inductive", 'declare setting = "transductive"'),
    (ReshapesTheSupport, "unequal_shots", "RuntimeError: shape .* is invalid .*Count the labels")])
def test_each_promise_names_what_is_broken(method, name, found):
    subject = candidate_of(method())
    with pytest.raises(FewshotError, match=f"'{name}'.*{found}"):
        check_promise(subject, name)


def test_a_method_that_knows_the_order_of_the_queries_gains_nothing():
    assert abs(above_chance(KnowsTheOrder())) < PROMISES["chance"].limit


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
    assert abs(honest) < PROMISES["chance"].limit < above_chance("nearest_neighbour")
