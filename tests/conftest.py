"""Fixtures shared by the whole suite: small synthetic episodes and the optional folder of shared reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fewshot.episodes import Episodes

SHARED = Path(os.environ.get("FEWSHOT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder with outputs of official implementations; tests that need it skip where it is absent."""
    folder = SHARED / "oracles"
    if not folder.is_dir():
        pytest.skip(f"needs the reference outputs, not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets; tests that need it skip where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets, not found at {folder}")
    return folder


def random_episodes(episodes=3, ways=5, shots=2, queries=15, dim=16, seed=0, dtype=torch.float64, spread=1.0,
                    with_labels=False):
    """Non-negative class clusters, queries class-balanced and shuffled; `queries` is the total number."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(episodes, ways, dim, generator=generator, dtype=torch.float64)
    support_labels = torch.arange(ways).repeat(shots).expand(episodes, -1).contiguous()
    order = torch.stack([torch.randperm(queries, generator=generator) for _ in range(episodes)])
    query_labels = (torch.arange(queries) % ways)[order]

    def around(labels):
        chosen = torch.gather(centres, 1, labels.unsqueeze(-1).expand(-1, -1, dim))
        noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        return (chosen + spread * noise).relu().to(dtype)

    made = Episodes(support=around(support_labels), support_labels=support_labels, query=around(query_labels), ways=ways)
    return (made, query_labels) if with_labels else made
