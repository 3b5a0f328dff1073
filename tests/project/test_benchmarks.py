"""The benchmarks are no part of the package; that they still run is tested, not how fast anything is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.timeout(1500)  # the slow ones start processes of minutes on a busy machine
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


def benchmark(name, *arguments):
    """Run a benchmark on the sources of this checkout, with one thread."""
    subprocess.run([sys.executable, FOLDER / name, *map(str, arguments)], check=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def rows(page):
    """{first cell: other cells} of all tables of a page."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("label", ["fewshot --help", "protonet 5w5s", "fewshot eval --features"])
@pytest.mark.slow
def test_a_checkout_beside_itself(tmp_path, label):
    page = tmp_path / "progress.md"
    benchmark("progress.py", ROOT, ROOT, "--only", label, "--rounds", 1, "--seconds", 0.01, "--write", page)
    before, after, ratio = rows(page.read_text())[label]
    assert float(before) > 0 and float(after) > 0 and float(ratio.split()[0]) > 0
    assert "below 0.97" in page.read_text()


def test_progress_says_what_became_slower(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    page = importlib.import_module("progress").page
    found = {"fast": [(2.0, 1.0), (4.0, 2.0), (1.0, 9.0)], "slow": [(0.96, 1.0), (0.96, 1.0), (2.0, 1.0)]}
    text = page(found, 3, (0, 0))
    assert rows(text)["fast"] == ["2.000", "2.000", "2.000 (0.111 to 2.000)"]
    assert rows(text)["slow"] == ["0.960", "1.000", "0.960 (0.960 to 2.000)"]
    assert "Ratios below 0.97: slow 0.960." in text
    assert "No ratio of speed is below 0.97." in page({"fast": found["fast"]}, 3, (0, 0))


def test_a_folder_without_the_package_is_no_checkout(processes, tmp_path):
    checkout = importlib.import_module("progress").Checkout
    with pytest.raises(SystemExit, match="does not hold the package"):
        checkout(tmp_path, tmp_path / "own")


@pytest.mark.parametrize("sections, names", [
    pytest.param(["methods", "embedding"], {"soft_kmeans (transductive)", "conv4 84x84"}, marks=pytest.mark.slow),
    pytest.param(["training"], {"protonet", "maml"}, marks=pytest.mark.slow)])
def test_the_page_of_a_device_has_the_cpu_beside_it(tmp_path, sections, names):
    page = tmp_path / "device.md"
    # The CPU by another name stands for a device.
    benchmark("device.py", "--device", "cpu:0", "--methods", "soft_kmeans", "--backbones", "conv4", "--seconds", 0.01,
              "--write", page, "--only", *sections)
    found = {name: cells for name, cells in rows(page.read_text()).items() if name in names}
    assert found.keys() == names
    for cells in found.values():
        milliseconds, rate, size, _, other, _, ratio = (float(cell.replace(",", "")) for cell in cells)
        assert min(milliseconds, rate, size, other) > 0 and ratio >= 0


def test_the_page_of_a_machine_without_a_device(processes):
    device = importlib.import_module("device")
    text = device.page({"methods": {"protonet": [device.Cell(2000.0, 64)]}}, [torch.device("cpu")], 0.0)
    assert "Measured on the CPU only." in text
    assert rows(text)["protonet (inductive)"] == ["0.5", "2,000", "64"]


def test_what_a_device_cannot_compute_is_told(processes):
    device = importlib.import_module("device")

    def make(size):
        if size > 1:
            raise torch.OutOfMemoryError
        return lambda: None

    def refuse(size):
        raise RuntimeError("no float64 here\nand more")

    cpu = torch.device("cpu")
    assert device.best(make, cpu, 10).size == 1
    assert device.best(lambda size: lambda: None, cpu, 10).size > 1
    assert device.shown(device.best(refuse, cpu, 10)) == ["RuntimeError: no float64 here", "", ""]


@pytest.mark.slow
def test_a_method_that_does_not_fit_the_features_is_named(tmp_path):
    page = tmp_path / "speed.md"
    benchmark("transductive.py", "--methods", "soft_kmeans", "cosoc", "--rounds", 1, "--seconds", 0.01, "--write", page)
    text = page.read_text()
    assert "| soft_kmeans |" in text and "| cosoc |" not in text and "cosoc" in text.split("Not in this run: ")[1]


@pytest.mark.slow
def test_the_page_of_deployment(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'fewshot[onnx]'")
    benchmark("deployment.py", "--backbones", "conv4", "--rounds", 1, "--write", tmp_path / "a.md", "--figure",
              tmp_path / "a.png")
    weights, model, difference, *_ = rows((tmp_path / "a.md").read_text())["conv4"]
    assert 0.1 < float(weights) < float(model) < 2 and float(difference) <= 1e-4 and (tmp_path / "a.png").stat().st_size > 0
