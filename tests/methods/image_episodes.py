"""Small image episodes, and a small network to adapt to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewshot.core.seeding import isolated_rng
from fewshot.episodes.types import Episodes

SIZE = 6


class Network(nn.Module):
    """Convolution, BatchNorm, max-pooling, ReLU: [B, 1, 6, 6] -> [B, 9 width]. Not a Backbone: any module will do."""

    def __init__(self, batch_norm: bool = True, width: int = 4):
        super().__init__()
        self.feature_dim = 9 * width
        norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), norm, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Identity(nn.Module):
    """The pixels themselves, and no weight at all."""

    feature_dim = SIZE * SIZE

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def network(seed: int = 0, dtype=torch.float64, **options) -> Network:
    """Weights, and running statistics other than the initial ones, drawn from `seed`."""
    with isolated_rng(seed):
        made = Network(**options)
        for name, value in made.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + (0.5 if name.endswith("var") else -0.5))
    return made.to(dtype)


def image_episodes(episodes: int = 3, ways: int = 3, shots: int = 2, queries: int = 7, seed: int = 0,
                   dtype=torch.float64, spread: float = 0.3) -> tuple[Episodes, Tensor]:
    """Noisy copies of one random pattern a class; `queries` is the total number. Also the query labels [E, Q]."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(episodes, ways, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    support_labels = torch.arange(ways).repeat(shots).expand(episodes, -1).contiguous()
    query_labels = (torch.arange(queries) % ways).expand(episodes, -1).contiguous()

    def images(labels: Tensor) -> Tensor:
        rows = torch.arange(episodes).unsqueeze(1)
        noise = torch.rand(*labels.shape, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
        return ((1 - spread) * patterns[rows, labels] + spread * noise).to(dtype)

    return Episodes(images(support_labels), support_labels, images(query_labels), ways), query_labels


def replaced(episodes: Episodes, **changes) -> Episodes:
    fields = {"support": episodes.support, "support_labels": episodes.support_labels, "query": episodes.query,
              "ways": episodes.ways}
    return Episodes(**{**fields, **changes})


def loss_and_gradients(learner: nn.Module, episodes: Episodes, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the learner's own loss; weights that have no part in it are left out."""
    learner.zero_grad()
    value = learner.loss(episodes, labels)[0]
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def episodes_of_images(episodes=2, ways=4, queries=8):
    """Noise of 28 x 28 pixels in float64, one shot; also the query labels [E, Q]."""
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.rand(episodes, n, 1, 28, 28, generator=generator, dtype=torch.float64)
                      for n in (ways, queries))
    labels = torch.arange(ways).expand(episodes, -1).contiguous()
    return Episodes(support, labels, query, ways), (torch.arange(queries) % ways).expand(episodes, -1).contiguous()
