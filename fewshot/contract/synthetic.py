"""Synthetic features, of which it is known what a method can make of them."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fewshot.data.banks import FeatureBank
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import Method


@overload
def random_episodes(episodes: int = ..., ways: int = ..., shots: int = ..., queries: int = ..., dim: int = ...,
                    seed: int = ..., dtype: torch.dtype = ..., spread: float = ...,
                    with_labels: Literal[False] = ...) -> Episodes: ...
@overload
def random_episodes(episodes: int = ..., ways: int = ..., shots: int = ..., queries: int = ..., dim: int = ...,
                    seed: int = ..., dtype: torch.dtype = ..., spread: float = ..., *,
                    with_labels: Literal[True]) -> tuple[Episodes, Tensor]: ...
def random_episodes(episodes: int = 3, ways: int = 5, shots: int = 2, queries: int = 15, dim: int = 16, seed: int = 0,
                    dtype: torch.dtype = torch.float64, spread: float = 1.0,
                    with_labels: bool = False) -> Episodes | tuple[Episodes, Tensor]:
    """Non-negative class clusters, queries class-balanced and shuffled; `queries` is the total number."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(episodes, ways, dim, generator=generator, dtype=torch.float64)
    support_labels = torch.arange(ways).repeat(shots).expand(episodes, -1).contiguous()
    order = torch.stack([torch.randperm(queries, generator=generator) for _ in range(episodes)])
    query_labels = (torch.arange(queries) % ways)[order]

    def around(labels: Tensor) -> Tensor:
        chosen = torch.gather(centres, 1, labels.unsqueeze(-1).expand(-1, -1, dim))
        noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        return (chosen + spread * noise).relu().to(dtype)

    made = Episodes(support=around(support_labels), support_labels=support_labels, query=around(query_labels), ways=ways)
    return (made, query_labels) if with_labels else made


def noise_bank(dim: int = 32, seed: int = 5, split: str = "val") -> FeatureBank:
    """Features that say nothing about their labels: no honest method is better than one in five on 5-way episodes."""
    features = torch.randn(1200, dim, generator=torch.Generator().manual_seed(seed)).abs()
    return FeatureBank(features, torch.arange(12).repeat_interleave(100), name="noise", split=split)


def above_chance(method: Method | str, dim: int = 32, **parameters: Any) -> float:
    """Accuracy on noise minus 1/5, as `fewshot.evaluate` finds it with a sampler and the labels nearby."""
    from fewshot.evaluation.evaluate import evaluate  # loads what a method alone does not need
    from fewshot.evaluation.run import Run

    name, instance = (method, None) if isinstance(method, str) else ("protonet", method)
    run = Run(episodes=120, method=name, parameters=parameters)
    needs_base = run.spec.needs_base if instance is None else instance.needs_base
    found = evaluate(run, noise_bank(dim), base_bank=noise_bank(dim, 6, "train") if needs_base else None, method=instance)
    assert found is not None, "only a part of a run has no result"
    return found.accuracy.mean - 0.2
