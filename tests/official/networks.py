"""The network on which official code that adapts a network is compared with ours: maps of the reference inputs as images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewshot.core.seeding import isolated_rng


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.beside = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.beside(x)).relu()


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """What `uniform_` draws on a processor that multiplies and adds with one rounding (all since about 2013), on any. The
    last bit matters: hundreds of steps of fine-tuning turn it into a difference in the third digit."""
    low, high = (torch.tensor(end, dtype=torch.float32).double() for end in (low, high))
    return (torch.rand(like.shape).double() * (high - low) + low).float()


class SmallResNet(nn.Module):
    """Images [B, 64, 4, 4] -> features [B, 24]; residual blocks by the names that the official code looks for, no stem."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with isolated_rng(seed):
            self.layer1, self.layer2, self.layer3, self.layer4 = (
                nn.Sequential(Block(*sizes)) for sizes in ((64, 16, 1), (16, 16, 1), (16, 24, 2), (24, 24, 1)))
        with isolated_rng(seed), torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    bound = math.sqrt(3.0) * math.sqrt(2 / 6) / math.sqrt(layer.weight[0].numel())
                    layer.weight.copy_(uniform(layer.weight, -bound, bound))
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.copy_(uniform(layer.running_mean, -0.2, 0.2))
                    layer.running_var.copy_(uniform(layer.running_var, 0.5, 1.5))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.layer4(self.layer3(self.layer2(self.layer1(images))))).mean((2, 3))

    embed = forward  # the official name
