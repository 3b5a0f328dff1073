"""Synthetic features, of which it is known what a method can make of them."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fewshot.data.banks import FeatureBank
from fewshot.data.class_texts import ClassTexts
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import METHODS, Method
from fewshot.ops.distances import l2_normalise


@overload
def random_episodes(episodes: int = ..., ways: int = ..., shots: int = ..., queries: int = ..., dim: int = ...,
                    seed: int = ..., dtype: torch.dtype = ..., spread: float = ...,
                    with_labels: Literal[False] = ..., with_text: bool = ...,
                    text_dim: int | None = ...) -> Episodes: ...
@overload
def random_episodes(episodes: int = ..., ways: int = ..., shots: int = ..., queries: int = ..., dim: int = ...,
                    seed: int = ..., dtype: torch.dtype = ..., spread: float = ..., *,
                    with_labels: Literal[True], with_text: bool = ...,
                    text_dim: int | None = ...) -> tuple[Episodes, Tensor]: ...
def random_episodes(episodes: int = 3, ways: int = 5, shots: int = 2, queries: int = 15, dim: int = 16, seed: int = 0,
                    dtype: torch.dtype = torch.float64, spread: float = 1.0,
                    with_labels: bool = False, with_text: bool = False,
                    text_dim: int | None = None) -> Episodes | tuple[Episodes, Tensor]:
    """Non-negative class clusters, queries class-balanced and shuffled; `queries` is the total number. The text of a class
    lies at 0.5 from its centre, that of each of its two prompts a little from the text. With `text_dim` texts have that many
    channels, the first ones of the features, and the episodes have the projection that leads there."""
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
    if with_text:
        text = centres.relu() + 0.5 * torch.randn(centres.shape, generator=generator, dtype=torch.float64)
        prompts = text.unsqueeze(2) + 0.2 * torch.randn(episodes, ways, 2, dim, generator=generator, dtype=torch.float64)
        text, prompts = (l2_normalise(vectors[..., :text_dim]).to(dtype) for vectors in (text, prompts))
        made = made.replace(text=text, prompts=prompts)
        if text_dim is not None:
            made = made.replace(projection=_first_channels(dim, text_dim).to(dtype).expand(episodes, -1, -1))
    return (made, query_labels) if with_labels else made


def _first_channels(dim: int, text_dim: int) -> Tensor:
    """[dim + 1, text_dim] the projection of features to their first channels."""
    return torch.eye(dim + 1, text_dim)


def noise_bank(dim: int = 32, seed: int = 5, split: str = "val", with_text: bool = False,
               text_dim: int | None = None) -> FeatureBank:
    """Features (and texts, as `random_episodes` has them) that say nothing about their labels: no honest method is better
    than one in five on 5-way episodes."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1200, dim, generator=generator).abs()
    texts = None
    if with_text:
        prompts = l2_normalise(torch.randn(24, text_dim or dim, generator=generator))
        sentences = tuple((f"{c}", f"a {c}") for c in range(12))
        texts = ClassTexts(l2_normalise(prompts.view(12, 2, -1).mean(1)), sentences, prompts,
                           projection=None if text_dim is None else _first_channels(dim, text_dim))
    return FeatureBank(features, torch.arange(12).repeat_interleave(100), name="noise", split=split,
                       texts=texts)


def above_chance(method: Method | str, dim: int = 32, **parameters: Any) -> float:
    """Accuracy on noise minus 1/5, as `fewshot.evaluate` finds it with a sampler and the labels nearby."""
    from fewshot.evaluation.evaluate import evaluate  # loads what a method alone does not need
    from fewshot.evaluation.run import Run

    name, instance = (method, None) if isinstance(method, str) else ("protonet", method)
    run = Run(episodes=120, method=name, parameters=parameters)
    needs_base = run.spec.needs_base if instance is None else instance.needs_base
    examined = METHODS[name] if instance is None else instance
    bank = noise_bank(dim, with_text=examined.needs_text, text_dim=None if examined.text_of_features else dim // 2)
    found = evaluate(run, bank, base_bank=noise_bank(dim, 6, "train") if needs_base else None, method=instance)
    assert found is not None, "only a part of a run has no result"
    return found.accuracy.mean - 0.2
