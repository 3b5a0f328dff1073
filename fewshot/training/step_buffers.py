"""Buffers of a network when several passes, perhaps of several processes, make one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot.core.team import Team


class StepBuffers:
    """Buffers of a network (BatchNorm's running statistics, counters) over the passes of one step.

    Every pass starts from the buffers as they were before the step. After the step floating ones are the mean over the
    passes and integers have advanced by the sum. So it does not matter which process computes which pass.
    """

    def __init__(self, network: nn.Module, passes: int):
        self.passes = passes
        self.buffers = list(network.buffers()) if passes > 1 else []
        self.before = [value.clone() for value in self.buffers]
        self.total = torch.zeros_like(_flat(self.before)) if self.buffers else torch.empty(0)

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        for value, before in zip(self.buffers, self.before, strict=True):
            value.copy_(before)
        yield
        if self.buffers:
            self.total += _flat(self.buffers)

    def finish(self, team: Team) -> None:
        if self.buffers:
            total = team.sum(self.total)
            parts = total.split([value.numel() for value in self.buffers])
            for value, before, part in zip(self.buffers, self.before, parts, strict=True):
                part = part.view_as(value)
                floating = value.is_floating_point()
                value.copy_(part / self.passes if floating else part - (self.passes - 1) * before)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in tensors])  # exact for counters, too
