"""What the tests of methods that train something on cached features share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.contract.synthetic import random_episodes
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method


def uneven_episodes(text_dim: int | None = None) -> Episodes:
    """Three episodes of 5 classes with 2, 3, 3, 3 and 3 shots, no feature 0; another scale and bias than those of CLIP."""
    e = random_episodes(shots=3, queries=7, dim=12, with_text=True, text_dim=text_dim).with_features(lambda x: x + 0.1)
    return e.replace(support=e.support[:, 1:], support_labels=e.support_labels[:, 1:], logit_scale=20.0, logit_bias=-3.0)


def fitted(loss: Callable[..., Tensor], *start: Tensor, steps: int, learning_rate: float, weight_decay: float = 0.0,
           epsilon: float = 1e-6) -> list[Tensor]:
    """The parameters after AdamW with a cosine schedule, by PyTorch, on loss(*parameters)."""
    parameters = [values.clone().requires_grad_() for values in start]
    optimiser = torch.optim.AdamW(parameters, learning_rate, eps=epsilon, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(*parameters).backward()
        optimiser.step()
        schedule.step()
    return [values.detach() for values in parameters]


def zero_shot_head(e: Episodes, episode: int) -> tuple[Tensor, Tensor]:
    """Weights [N, D] and intercept [N] that give the logits of zero_shot on unit features."""
    return e.logit_scale * normalize(e.text[episode], dim=-1), torch.full((e.ways,), e.logit_bias, dtype=torch.float64)


def check_no_texts(name: str, **parameters: object) -> None:
    """With text_scale=0 other texts and prompts give the same answer, which is not one of chance."""
    e, labels = random_episodes(shots=5, queries=25, spread=0.15, with_labels=True, with_text=True, text_dim=8)
    if name not in ("amu", "tes"):
        e = e.replace(text=torch.cat([e.text, e.text.flip(-1)], -1), prompts=torch.cat([e.prompts, e.prompts], -1))
    method = create_method(name, text_scale=0.0, **parameters)
    other = e.replace(text=e.text.flip(1) + 0.1, prompts=e.prompts.flip(1))
    assert torch.equal(method(e), method(other))
    assert (method(e).argmax(-1) == labels).double().mean() > 0.9
