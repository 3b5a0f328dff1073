"""Fixtures shared by the whole suite: the optional folder of shared reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FEWSHOT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the contract tests compute, e.g. cuda (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    # Not the user's own cache; commands in processes of their own read it, too.
    os.environ.setdefault("FEWSHOT_CACHE", str(config.rootpath / ".pytest_cache" / "images"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where methods compute, of `pytest --device`."""
    return request.config.getoption("device")


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
