"""The benchmarks are no part of the package; that they still run is tested, not how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_method_that_does_not_fit_the_features_is_named(tmp_path):
    page = tmp_path / "speed.md"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "transductive.py", "--methods", "soft_kmeans", "cosoc", "--rounds",
                    "1", "--seconds", "0.01", "--write", page], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    text = page.read_text()
    assert "| soft_kmeans |" in text and "| cosoc |" not in text and "cosoc" in text.split("Not in this run: ")[1]
