"""The fine-tuning methods once more, by other means: a copy of the network, adapters as modules, a plain training loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.methods.bases.test_time_learner import OPTIMISERS, TestTimeLearner
from tests.methods.image_episodes import image_episodes, replaced


class TwoBlocks(nn.Module):
    """Two blocks of convolution, normalisation, ReLU, and a 1x1 convolution: [B, 1, 6, 6] -> [B, 4]."""

    feature_dim = 4

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.AdaptiveMaxPool2d(3)),
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), norm(4), nn.ReLU()))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.blocks(images)).mean((2, 3))


def two_blocks(seed: int = 0, dtype=torch.float64, **options) -> TwoBlocks:
    """All weights and statistics drawn from `seed`, none 0 or 1."""
    with isolated_rng(seed):
        made = TwoBlocks(**options)
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            if value.is_floating_point() and name.split(".")[-2] == "1":
                value.data.copy_(torch.rand(value.shape) + 0.5)
    return made.to(dtype).eval()


def learner(name: str, network: nn.Module | None = None, ways: int = 3, **settings) -> TestTimeLearner:
    return create_method(name, **settings).with_backbone(two_blocks() if network is None else network, ways)


def features_of(network: nn.Module, episodes: Episodes) -> Episodes:
    with torch.no_grad():
        return replaced(episodes, **{name: network(getattr(episodes, name).flatten(0, 1)).unflatten(0, (len(episodes), -1))
                                     for name in ("support", "query")})


def check_without_steps(name: str, more: tuple[dict, ...] = ()) -> None:
    """No steps, no rates or no blocks leave the frozen features and the nearest class mean by cosine."""
    episodes, _ = image_episodes()
    expected = create_method("simple_shot", norm="un", metric="cosine", scale=10.0)(features_of(two_blocks(), episodes))
    fields = create_method(name).__dataclass_fields__
    no_rates = {"lr": 0.0, **({"head_lr": 0.0} if "head_lr" in fields else {})}
    nothing = [{"blocks": "none", **({"head_lr": 0.0} if "head_lr" in fields else {})}] if "blocks" in fields else []
    for settings in ({"steps": 0}, no_rates, *nothing, *more):
        torch.testing.assert_close(learner(name, **settings)(episodes), expected, atol=1e-12, rtol=0)


def check_against(name: str, by_hand: Callable, optimiser: str, steps: int, *, network: nn.Module | None = None,
                  images: Callable[[int, Tensor], Tensor] = lambda step, x: x, rows: Callable[[int], Tensor] | None = None,
                  each_step: Callable[[int, list[dict]], None] | None = None, **settings) -> None:
    """The method against torch.optim on a copy of the network, to 1e-9 in float64, and not what it is without training.

    by_hand     (network, support labels[, support]) -> (logits(network, support, x), parameter groups); puts adapters into
                the network as modules
    images      what is classified in a step;  rows: which images;  each_step: called with the groups before a step
    """
    network = two_blocks() if network is None else network
    # Hard episodes, so that there is something to learn.
    episodes, _ = image_episodes(spread=0.9)
    found = learner(name, network, optimiser=optimiser, steps=steps, **settings)(episodes)
    expected = []
    for e in episodes:
        support, labels, net = e.support[0], e.support_labels[0], copy.deepcopy(network)
        logits, groups = by_hand(net, labels, *[support] * (len(inspect.signature(by_hand).parameters) == 3))
        by_torch = OPTIMISERS[optimiser](groups)
        for step in range(steps):
            if each_step is not None:
                each_step(step, by_torch.param_groups)
            chosen = torch.arange(len(labels)) if rows is None else rows(step)
            by_torch.zero_grad()
            F.cross_entropy(logits(net, support, images(step, support)[chosen]), labels[chosen]).backward()
            by_torch.step()
        expected.append(logits(net, support, e.query[0]).detach())
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-9, rtol=0)
    untrained = learner(name, network, steps=0, **settings)(episodes)
    assert (found - untrained).abs().max() > 1e-4


def cosine_prototypes(labels: Tensor, scale: float = 10.0, last: Callable[[Tensor], Tensor] = lambda z: z) -> Callable:
    """logits(network, support, x) by class means of the features, which `last` maps first."""
    def logits(network: nn.Module, support: Tensor, x: Tensor) -> Tensor:
        z = last(network(support))
        means = torch.stack([z[labels == n].mean(0) for n in range(int(labels.max()) + 1)])
        return scale * F.cosine_similarity(last(network(x)).unsqueeze(1), means, dim=-1)
    return logits
