"""Answers to one episode of features that somebody hands over: labelling own images, and the scikit-learn estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.decisions import (
    COVERAGE,
    Decided,
    Decisions,
    check_coverage,
    difficulty,
    support_sets,
)
from fewshot.features.transforms import TransformChain, parse_transforms
from fewshot.methods.contract import Method, create_method, few_queries, method_parameters
from fewshot.ops.distances import squared_euclidean


def parameters_of_own_data(name: str, given: dict) -> dict:
    """The hyper-parameters of a method on data that no protocol drew: a prior of the queries is unknown unless it is given,
    where the paper's protocol may make it "balanced"."""
    return {"query_prior": "unknown", **given} if "query_prior" in method_parameters(name) else given


def fitted_method(name: str, parameters: dict, transforms: str,
                  base_bank: FeatureBank | None) -> tuple[Method, TransformChain]:
    """The method on features and the transforms before it, with the statistics of the base classes where they need them;
    hyper-parameters as by `parameters_of_own_data`."""
    method = create_method(name, **parameters_of_own_data(name, parameters))
    if method.inputs != "features":
        raise FewshotError(f"{name} adapts a backbone to images, and predictions are made from features; choose a method on "
                           "features, such as protonet, ridge or pt_map")
    if method.needs_backbone:
        raise FewshotError(f"{name} with these parameters has weights of its own, trained with a backbone; choose a "
                           "method without any, such as protonet, ridge or pt_map")
    chain = parse_transforms(transforms)
    if base_bank is None and (method.needs_base or chain.needs_base):
        raise FewshotError(f"{name if method.needs_base else transforms} needs statistics of the base classes: give "
                           "their features (base_bank=, base= or --base-features), or choose settings that do without, such "
                           "as norm='l2n'")
    chain = chain.fit(base_bank)
    if method.needs_base and base_bank is not None:
        method = method.fit(chain.bank(base_bank))
    return method, chain


def doubt(method: Method, chain: TransformChain, queries: int, ways: int) -> str:
    """What to say where a transductive method or transform has too few queries to learn from; else nothing."""
    return few_queries(queries, ways) if method.setting == "transductive" or chain.transductive else ""


def answer(support: Tensor, labels: Tensor, queries: Tensor, ways: int, method: Method, chain: TransformChain) -> Tensor:
    """Class probabilities [Q, N]: the softmax of `logits_of`."""
    return logits_of(support, labels, queries, ways, method, chain).softmax(-1)


def logits_of(support: Tensor, labels: Tensor, queries: Tensor, ways: int, method: Method, chain: TransformChain) -> Tensor:
    """The method's logits [Q, N] of features [Q, D], with the support [S, D] and its labels [S]: one episode.

    Raises FewshotError when the features of both differ in length, and when the logits are not finite.
    """
    with torch.inference_mode():
        logits = _logits(method, chain(_episode(support, labels, queries, ways)))
    return logits.clone()  # an ordinary tensor, not one of inference mode


def decide(support: Tensor, labels: Tensor, queries: Tensor, ways: int, method: Method, chain: TransformChain,
           decisions: Decisions | float = COVERAGE, logits: Tensor | None = None) -> Decided | None:
    """Decisions [Q, ...] on the same episode as `answer`: by `decisions`, or where these are a number, sets alone, from the
    support, that are to hold the true class at this rate. None where the latter are impossible: with one example of each
    class, and for a transductive answer, which a few left-out examples do not get.

    logits   those of `logits_of`, where the caller has them
    """
    with torch.inference_mode():
        prepared = chain(_episode(support, labels, queries, ways))
        if not isinstance(decisions, Decisions):
            inductive = method.setting == "inductive" and not chain.transductive
            found = support_sets(method, prepared, check_coverage(decisions)) if inductive else None
            return None if found is None else Decided(decisions, found[0].clone())
        hard = difficulty(method, prepared, decisions.temperature) if decisions.slope else None
        logits = _logits(method, prepared) if logits is None else logits
        sets = decisions.sets(logits[None], hard)[0]
    logits = logits.clone()  # an ordinary tensor, not one of inference mode
    return Decided(decisions.coverage, sets.clone(), decisions.probabilities(logits), decisions.unknown(logits))


def nearest_examples(support: Tensor, labels: Tensor, queries: Tensor, ways: int, method: Method, chain: TransformChain,
                     count: int = 3) -> Tensor:
    """Rows [Q, count or fewer] of the support that are nearest to each query, nearest first: Euclidean distance of the
    features that the method gets, after the transforms. What a person can look at, whatever `method` does with it."""
    episode = chain(_episode(support, labels, queries, ways))
    distances = squared_euclidean(episode.query, episode.support)[0]
    return distances.sort(dim=1, stable=True).indices[:, :count]


def _logits(method: Method, prepared: Episodes) -> Tensor:
    return next(answers(method, [prepared]))[0][0]


def _episode(support: Tensor, labels: Tensor, queries: Tensor, ways: int) -> Episodes:
    return Episodes(support=support[None], support_labels=labels[None], query=queries[None], ways=ways)
