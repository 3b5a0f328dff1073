"""What a command does not need is not imported: the start stays quick. (Times are in docs/speed_startup.md.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewshot.data.banks import FeatureBank

# Each takes from a tenth of a second to several seconds; torch._dynamo is torch's compiler, which `import torch` leaves out.
EVALUATION_NEEDS_NOT = {"torchvision", "timm", "pandas", "matplotlib", "sklearn", "scipy.stats", "scipy.optimize", "ot",
                        "tensorboard", "torch._dynamo", "submitit"}
HELP_NEEDS_NOT = EVALUATION_NEEDS_NOT | {"torch", "numpy", "scipy", "PIL", "safetensors"}
PROGRAM = """
import sys
from fewshot.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as stop:
    assert not stop.code, stop.code
print("loaded:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def loaded(heavy: set[str], *arguments: str, **environment: str) -> tuple[list[str], str]:
    """(those of `heavy` that a process of this command has imported at its end, what it printed)."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, ",".join(heavy), *arguments], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
                          cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stderr
    printed, _, names = done.stdout.rpartition("loaded:")
    return names.split(), printed


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["eval", "--help"], ["sweep", "--help"], []],
                         ids=" ".join)
def test_help_needs_no_torch(arguments):
    names, printed = loaded(HELP_NEEDS_NOT, *arguments)
    assert not names and "fewshot" in printed


def test_completion_needs_no_torch():
    program = ("import sys; from fewshot.cli.options import method_names; print(*method_names('protonet,pt_')); "
               f"print(*set({sorted(HELP_NEEDS_NOT)}) & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["protonet,pt_map", ""]


def test_lists_build_no_network():
    names, printed = loaded(EVALUATION_NEEDS_NOT - {"matplotlib"}, "list")  # glyphs are counted with matplotlib's reader
    assert not names and "efficientnet_lite0" in printed


def test_evaluation_of_features(tmp_path):
    labels = torch.arange(6).repeat_interleave(20)
    features = FeatureBank(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), labels)
    path = str(features.save(tmp_path / "bank.safetensors"))
    names, printed = loaded(EVALUATION_NEEDS_NOT, "eval", "--features", path, "--method", "protonet,soft_kmeans",
                            "--episodes", "20", "--runs", str(tmp_path / "runs"))
    assert not names and "20 episodes" in printed


def test_evaluation_of_a_data_set_whose_features_are_cached(tmp_path):
    command = ["eval", "--backbone", "pixels", "--episodes", "20", "--shots", "1", "--queries", "5",
               "--runs", str(tmp_path / "runs")]
    loaded(set(), *command, "--seed", "1", FEWSHOT_CACHE=str(tmp_path / "images"))
    names, printed = loaded(EVALUATION_NEEDS_NOT, *command, FEWSHOT_CACHE=str(tmp_path / "images"))
    assert not names and "20 episodes" in printed
