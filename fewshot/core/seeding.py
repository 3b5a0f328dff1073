"""Random numbers that do not touch the caller's: nothing in the package seeds the global generators for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fewshot.core.checked import check_integer


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run the block with torch's global generators (CPU and every CUDA device) set from `seed`, then put them back.

    For code that draws from the global generators and takes no generator of its own, such as weight initialisation.
    The generators are restored when the block raises, too. Raises FewshotError for a seed that is no integer in
    0 .. 2^63 - 1.
    """
    seed = check_integer("seed", seed, 0, 2**63 - 1)
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=list(devices)):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for device in devices:
            state = torch.Generator(device=f"cuda:{device}").manual_seed(seed).get_state()
            torch.cuda.set_rng_state(state, device)
        yield


def derived_seed(*parts: int | str) -> int:
    """A seed from 0 to 2^63 - 1 that is a pure function of `parts`; other parts give unrelated streams."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
