"""What a command does not need is not imported: the start stays quick. (Times are in docs/speed_startup.md.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewshot.cli.main import main
from fewshot.data.banks import FeatureBank

# Each takes from a tenth of a second to several seconds; torch._dynamo is torch's compiler, which `import torch` leaves out.
EVALUATION_NEEDS_NOT = {"torchvision", "timm", "pandas", "matplotlib", "sklearn", "scipy.stats", "scipy.optimize", "ot",
                        "tensorboard", "torch._dynamo", "submitit"}
HELP_NEEDS_NOT = EVALUATION_NEEDS_NOT | {"torch", "numpy", "scipy", "PIL", "safetensors"}
PROGRAM = """
import json, sys
from fewshot.cli.main import main
for command in json.loads(sys.argv[2]):
    try:
        main(command)
    except SystemExit as stop:
        assert not stop.code, stop.code
    print("loaded:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)), "|")
"""


def loaded(heavy: set[str], *commands: list[str]) -> list[tuple[list[str], str]]:
    """Of each of the commands, run one after the other in one process: (those of `heavy` that were imported at its end,
    what it printed)."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, ",".join(heavy), json.dumps(commands)], capture_output=True,
                          text=True, timeout=120, cwd=Path(__file__).resolve().parents[2],
                          env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    found = []
    for part in done.stdout.split("|\n")[:-1]:
        printed, _, names = part.rpartition("loaded:")
        found.append((names.split(), printed))
    assert len(found) == len(commands)
    return found


def test_help_needs_no_torch():
    commands = [["--help"], ["--version"], ["eval", "--help"], ["sweep", "--help"], []]
    for command, (names, printed) in zip(commands, loaded(HELP_NEEDS_NOT, *commands), strict=True):
        assert not names and "fewshot" in printed, command


def test_completion_needs_no_torch():
    program = ("import sys; from fewshot.cli.options import method_names; print(*method_names('protonet,pt_')); "
               f"print(*set({sorted(HELP_NEEDS_NOT)}) & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["protonet,pt_map", ""]


def test_evaluation_and_lists(tmp_path, monkeypatch):
    """Of features, of a data set whose features are cached; and lists build no network."""
    labels = torch.arange(6).repeat_interleave(20)
    features = FeatureBank(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), labels)
    path = str(features.save(tmp_path / "bank.safetensors"))
    runs = ["--episodes", "20", "--runs", str(tmp_path / "runs")]
    of_features = ["eval", "--features", path, "--method", "protonet,soft_kmeans", *runs]
    of_images = ["eval", "--backbone", "pixels", "--shots", "1", "--queries", "5", *runs]
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "images"))
    with pytest.raises(SystemExit):  # embeds the images; the run below has another seed and is not found
        main([*of_images, "--seed", "1"])
    evaluations = loaded(EVALUATION_NEEDS_NOT, of_features, of_images, ["list"])
    for names, printed in evaluations[:2]:
        assert not names and "20 episodes" in printed
    names, printed = evaluations[2]
    assert names in ([], ["matplotlib"]) and "efficientnet_lite0" in printed  # its reader counts the glyphs
