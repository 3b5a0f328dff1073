"""The benchmarks are no part of the package; that they still run is tested, not how fast anything is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("processes")


@pytest.fixture
def large():
    """This process with 300 MiB more than a small one."""
    return bytearray(300 << 20)


def test_the_peak_of_a_small_child_is_not_that_of_its_large_parent(processes, large):
    assert processes.peak_memory() > 300
    assert 1 < float(processes.run(["-c", "import processes; print(processes.peak_memory())"], cwd=FOLDER).output) < 100
    _, peak = processes.peak_of("platform")
    assert 1 < peak < 100


def test_the_peak_of_a_child_is_its_own_even_when_the_memory_is_free_again(processes):
    found = processes.run(["-c", "import processes; bytearray(200 << 20); print(processes.peak_memory())"], cwd=FOLDER)
    assert 200 < float(found.output) < 300


def test_no_benchmark_reads_the_peak_in_another_way():
    assert {path.name for path in FOLDER.glob("*.py") if "ru_maxrss" in path.read_text()} == {"processes.py"}


def test_a_process_is_clocked_and_its_failure_is_told(processes):
    taken = processes.run(["-c", "import os, time; time.sleep(0.2); print(os.environ['COLOUR'])"], COLOUR="red")
    assert taken.output == "red\n"
    assert 0.2 <= taken.seconds < 60
    assert 0 < taken.processor < taken.seconds  # it sleeps for most of its time
    with pytest.raises(SystemExit, match="ended with code 1(.|\n)*division by zero"):
        processes.run(["-c", "1 / 0"])
    with pytest.raises(SystemExit, match="No such command"):
        processes.peak_of("fewshot", "nothing")


def test_sections_of_a_page_that_were_not_measured_stay_as_they_are(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    merged = importlib.import_module("suite_page").merged
    old = "# Page\n\nWords.\n\n## One\n\n1\n\n### Part\n\nx # y\n\n## Two\n\n2\n"
    assert merged(old, "# Page\n\nWords.\n\n## Two\n\n3\n") == old.replace("2\n", "3\n")
    assert merged(old, old) == merged("", old) == old


@pytest.mark.slow
def test_a_method_that_does_not_fit_the_features_is_named(tmp_path):
    page = tmp_path / "speed.md"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "transductive.py", "--methods", "soft_kmeans", "cosoc", "--rounds",
                    "1", "--seconds", "0.01", "--write", page], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    text = page.read_text()
    assert "| soft_kmeans |" in text and "| cosoc |" not in text and "cosoc" in text.split("Not in this run: ")[1]
