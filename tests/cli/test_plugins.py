"""Methods, backbones, data sets and protocols of one's own reach the command line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewshot.core import plugins
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.methods import METHODS, create_method

ROOT = Path(__file__).resolve().parents[2]
OWN = '''
from dataclasses import dataclass
import torch
from fewshot.backbones import BACKBONES
from fewshot.backbones.base import Backbone
from fewshot.core.settings import setting, whole
from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, Dataset
from fewshot.episodes.protocol import PROTOCOLS, Protocol
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.methods import METHODS, Method, create_method

@METHODS.register("doubled")
@dataclass(frozen=True, eq=False)
class Doubled(Method):
    """Twice the logits of ProtoNet."""
    factor: float = 2.0

    def __call__(self, episodes):
        return self.factor * create_method("protonet")(episodes)

@DATASETS.register("noise_images")
@dataclass(frozen=True)
class Noise(Dataset):
    """Ten classes of noise."""
    name, description, licence, homepage, state = "noise_images", "noise", "none", "", "built in"

    def find(self, root):
        return root

    def counts(self, root):
        return {"test": (10, 200)}

    def load(self, request):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (200, 1, 16, 16), generator=generator).to(torch.uint8)
        return ImageBank(images, torch.arange(200) % 10, name=self.name, split=request.split)

@PROTOCOLS.register("three")
@dataclass(frozen=True)
class Three(Protocol):
    """Three ways."""
    name = "three"
    depth: int = setting(2, "support images a class of the three", whole(1), axis="depth")

    def sampler(self, bank, seed):
        return EpisodeSampler(bank, ways=3, shots=self.depth, queries=4, seed=seed)

    def text(self, without=""):
        return f"three ways, depth {self.depth}"
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def fewshot(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != plugins.FILES}
    return subprocess.run([sys.executable, "-m", "fewshot", *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, cwd=ROOT, env={**kept, "COLUMNS": "200", **environment})


@pytest.mark.slow
def test_a_file_is_loaded_wherever_the_option_stands(own, tmp_path):
    labels = torch.arange(6).repeat_interleave(20)
    bank = FeatureBank(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), labels)
    features = bank.save(tmp_path / "bank.safetensors")
    common = ("--features", features, "--shots", 1, "--episodes", 40, "--runs", tmp_path / "runs", "--json", "-")
    done = fewshot("eval", "--method", "doubled,protonet", *common, "--workers", 2, "--load", own)
    assert done.returncode == 0, done.stderr
    doubled, plain = json.loads(done.stdout)
    assert doubled["run"]["parameters"] == {"factor": 2.0} and doubled["accuracy"] == plain["accuracy"]
    missing = fewshot("eval", "--method", "doubled", *common)
    assert missing.returncode == 2 and "unknown method 'doubled'" in missing.stderr and "--load FILE.py" in missing.stderr


@pytest.mark.slow
def test_data_sets_and_protocols_of_a_file(own, tmp_path):
    done = fewshot("--load", own, "eval", "--dataset", "noise_images", "--backbone", "pixels", "--protocol", "three",
                   "--depth", 3, "--episodes", 30, "--runs", tmp_path / "runs", "--json", "-", FEWSHOT_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["run"]["protocol"] == "three" and found["run"]["depth"] == 3 and "ways" not in found["run"]
    assert abs(found["accuracy"] - 1 / 3) < 0.1, "noise"
    listed = fewshot("list", "protocols", FEWSHOT_LOAD=str(own))
    assert "three" in listed.stdout and "depth=2" in listed.stdout
    refused = fewshot("--load", own, "eval", "--dataset", "noise_images", "--backbone", "pixels", "--protocol", "three",
                      "--ways", 5, "--runs", tmp_path / "runs")
    assert refused.returncode == 2 and "--ways beside --protocol three, which has no use for it" in refused.stderr


@pytest.mark.parametrize(("text", "message"), [(None, "no Python file at"), ("x = 1 / 0", "ZeroDivisionError"),
                                               ("import no_such_package", "no_such_package")])
def test_a_file_that_cannot_be_loaded_is_named(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    done = fewshot("list", "--load", path)
    assert done.returncode == 2 and message in done.stderr and "bad.py" in done.stderr and "Traceback" not in done.stderr


def test_entry_points_of_installed_packages_are_found(monkeypatch):
    class Entry:
        name, value = "toy", "toy_package"

        def load(self):
            METHODS._items["from_entry_point"] = METHODS["protonet"]

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()] if group == "fewshot" else [])
    plugins.load_plugins.cache_clear()
    try:
        assert create_method("from_entry_point").setting == "inductive"
    finally:
        METHODS._items.pop("from_entry_point", None)
        plugins.load_plugins.cache_clear()


def test_a_broken_package_is_named(monkeypatch):
    class Entry:
        name, value = "toy", "toy_package"

        def load(self):
            raise ImportError("no toys")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()])
    plugins.load_plugins.cache_clear()
    try:
        with pytest.raises(FewshotError, match="entry point toy = toy_package .*no toys.*mend or uninstall"):
            METHODS["nothing_like_it"]
    finally:
        plugins.load_plugins.cache_clear()
