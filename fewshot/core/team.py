"""The processes that `torchrun` started, as one team that shares the work."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewshot.core.errors import FewshotError

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=2)  # others wait while the first process validates


@dataclass(frozen=True)
class Team:
    """The processes that work together; alone, every method does nothing but hand back what it was given.

    rank, size   of this process, and their number
    device       of the tensors they exchange

    If a process has ended, the others get a FewshotError.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that validates, writes and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place; the same bits in all of them."""
        if self.size > 1:
            with _lost_processes():
                dist.all_reduce(values)
        return values

    def sum_numbers(self, numbers: list[float]) -> list[float]:
        if self.size == 1:
            return numbers
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum of the gradients over processes. A parameter without a gradient in all of them keeps none, so that the
        optimiser leaves it alone as it does in a single process."""
        if self.size == 1:
            return
        used = self.sum_numbers([float(p.grad is not None) for p in parameters])
        gradients = []
        for p, count in zip(parameters, used, strict=True):
            if count:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                gradients.append(p.grad)
        total = self.sum(torch.cat([g.flatten() for g in gradients])) if gradients else torch.empty(0)
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        values = [value] * self.size
        if self.size > 1:
            with _lost_processes():
                dist.all_gather_object(values, value)
        return values

    def from_first(self, action: Callable[[], T]) -> T:
        """What `action` returns, or the FewshotError it raises, in the first process; it is not called in the others."""
        if self.size == 1:
            return action()
        outcome: list = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except FewshotError as error:
                outcome[1] = error
        with _lost_processes():
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team of this process: of an initialised process group, else of those that torchrun started, else alone.

    device   of the network: NCCL connects CUDA devices, gloo anything else
    """
    started_here = not dist.is_initialized() and dist.is_torchelastic_launched()
    if started_here:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        if dist.is_initialized():
            over = device if dist.get_backend() == "nccl" else torch.device("cpu")
            yield Team(dist.get_rank(), dist.get_world_size(), over)
        else:
            yield Team()
    finally:
        if started_here:
            dist.destroy_process_group()


def own_device(name: str = "auto") -> torch.device:
    """The device `name`; "auto" is a CUDA device where there is one, else Apple's, else the CPU. Of several CUDA devices
    each process that torchrun started takes its own. Raises FewshotError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if str(device) == "cuda":  # without an index
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FewshotError(f"device {name!r} cannot be used here ({reason}); choose auto or cpu") from None
    return device


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise when a connection breaks
        raise FewshotError(f"another process has ended ({str(error).splitlines()[0]}); what was saved is "
                           "whole: resume with the same command") from error
