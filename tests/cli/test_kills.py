"""Commands that are killed at random moments and started again end as if nothing had happened, to the last bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.cli.main import main
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
FOLDERS, KILLS = 5, 4  # 20 kills of each command; those of one folder meet what the ones before left there
EXPERIMENT = '''"""A small experiment."""
from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment

RUNS = [Run(dataset="glyphs", backbone="pixels", method=method, queries=5, shots=1, episodes=300)
        for method in ("protonet", "nearest_neighbour")]

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("method",))
'''
COMMANDS = {
    "train": "train --dataset photos --steps 60 --ways 2 --queries 1 --out out --config validate_every=0 --config "
             "checkpoint_every=5",
    "eval": "eval --features ../bank.safetensors --method soft_kmeans,pt_map --shots 1 --episodes 3000 --runs runs",
    "embed": "embed --dataset photos --backbone resnet12 --weights random --out out.safetensors --cache cache",
    "predict": "predict --support photos --queries photos --backbone resnet12 --weights random --out out",
    "sweep": "sweep experiment.py --runs runs"}


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fewshot.cli.train", "fewshot.training", "fewshot.evaluation.evaluate", "fewshot.tuning",
                                    "torch._dynamo", "fewshot.labelling.predict", "torch.utils.tensorboard"])
    return context


def command(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    with (folder / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        sys.stdout, sys.stderr = log, log
        main(arguments)


def prepared(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 255, (84, 84, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    (folder / "splits.csv").write_text("class,split\nant,train\nbee,train\ncat,val\ndog,val\n")
    (folder / "experiment.py").write_text(EXPERIMENT)
    return folder


def outcome(folder: Path, name: str) -> dict[str, object]:
    if name in ("eval", "sweep"):
        found = {result.record.key: result for result in Store(folder / "runs")}
        assert len(found) == 2
        return {key: (result.fingerprint, result.correct.numpy().tobytes()) for key, result in found.items()}
    files = {"train": ("out/weights.safetensors", "out/history.csv"), "embed": ("out.safetensors",),
             "predict": ("out/predictions.csv", "out/predictions.html")}[name]
    return {file: (folder / file).read_bytes() for file in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "images"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # jobs of a sweep import this checkout
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(30)
    FeatureBank(torch.randn(600, 64, generator=generator), labels, name="toy", split="test").save(
        tmp_path / "bank.safetensors")
    arguments = COMMANDS[name].split()
    if name == "train":
        arguments += ["--data-option", "splits=splits.csv", "--config", "validation_ways=2"]

    def start(folder):
        process = processes.Process(target=command, args=(folder, arguments))
        process.start()
        return process

    def finished(folder):
        process = start(folder)
        process.join()
        assert process.exitcode == 0, (folder / "log").read_text()[-2000:]
        return outcome(folder, name)

    finished(prepared(tmp_path / "warm"))
    begun = time.monotonic()
    expected = finished(prepared(tmp_path / "whole"))
    whole, chance, hits = time.monotonic() - begun, random.Random(0), 0
    for number in range(FOLDERS):
        folder = prepared(tmp_path / f"killed{number}")
        for _ in range(KILLS):
            process = start(folder)
            process.join(chance.uniform(0, whole))
            hits += process.is_alive()
            process.kill()
            process.join()
        assert finished(folder) == expected
        assert not [path for path in folder.rglob("*.tmp") if path.stat().st_mtime > time.time() - 1]
    print(f"{name}: {hits} of {FOLDERS * KILLS} kills hit a running command, of {whole:.1f} s")
    assert hits > FOLDERS * KILLS / 4


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])  # which refuses: tests/training
def test_two_at_once_in_one_folder(name, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "images"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    generator = torch.Generator().manual_seed(0)
    FeatureBank(torch.randn(600, 64, generator=generator), torch.arange(20).repeat_interleave(30), name="toy",
                split="test").save(tmp_path / "bank.safetensors")
    outcomes = []
    for folder, count in ((prepared(tmp_path / "alone"), 1), *((prepared(tmp_path / f"two{n}"), 2) for n in range(3))):
        started = [processes.Process(target=command, args=(folder, COMMANDS[name].split())) for _ in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join()
            assert process.exitcode == 0, (folder / "log").read_text()[-2000:]
        outcomes.append(outcome(folder, name))
    assert all(found == outcomes[0] for found in outcomes)
