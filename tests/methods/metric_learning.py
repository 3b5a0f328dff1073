"""Training a metric learner end to end on a few small episodes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewshot.backbones import create_backbone
from fewshot.datasets import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.methods import Method
from fewshot.training import TrainConfig
from fewshot.training.learner import make_learner


@functools.cache
def image_bank_episodes(count: int = 4, shots: int = 1) -> tuple[Episodes, Tensor]:
    """The first 3-way episodes of glyphs, 28x28 pixels, 2 queries a class; and the query labels [E, Q]."""
    bank = load_dataset("glyphs", "val")
    return EpisodeSampler(bank, ways=3, shots=shots, queries=2, seed=0).sample(bank, start=0, count=count)


def fit_four_episodes(method: Method, steps: int = 30, shots: int = 1, pools: int = 2) -> tuple[list[float], bool]:
    """Losses of Adam steps on the same four episodes through conv4 with 16 channels on 20x20 pixels, and whether all queries
    are right at the end. The rate falls to zero, so that the last step is no jump."""
    backbone = create_backbone("conv4", channels=1, image_size=20, width=16, pools=pools)
    method = method.with_backbone(backbone, 3) if method.needs_backbone else method
    learner = make_learner(TrainConfig(method="custom", ways=3, validate_every=0), backbone, method).train()
    episodes, labels = image_bank_episodes(shots=shots)
    optimiser = torch.optim.Adam(learner.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss, logits = learner.loss(episodes, labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses, torch.equal(logits.argmax(-1), labels)
