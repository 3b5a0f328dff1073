"""What the scripts of this folder share: reading a checkout of official code, ordering the support, keeping outputs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fewshot.episodes.types import Episodes

HERE = Path(__file__).parent


def checkout_argument(description: str) -> Path:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkout", type=Path, help="folder of a clone of the official repository")
    return parser.parse_args().checkout


def official_module(checkout: Path, path: str) -> ModuleType:
    """The file `path` of the checkout, imported alone."""
    spec = importlib.util.spec_from_file_location(f"official_{Path(path).stem}", checkout / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def support_order(episodes: Episodes, by_shot: bool) -> Tensor:
    """[E, S] the support items class by class, or shot by shot (a b c d e, a b c d e, ...)."""
    order = episodes.support_labels.argsort(dim=1, stable=True)
    return order.unflatten(1, (episodes.ways, -1)).transpose(1, 2).flatten(1) if by_shot else order


def keep(official: str, inputs: str, **arrays: np.ndarray) -> None:
    np.savez_compressed(HERE / f"{official}__{inputs}.npz", **arrays)
    print(f"{official}, {inputs}", flush=True)


def describe(official: str, checkout: Path, **description) -> None:
    """Write what was run beside its outputs, with the commit of the checkout."""
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    text = json.dumps({"commit": commit.stdout.strip(), "torch": torch.__version__, **description}, indent=1)
    (HERE / f"{official}.json").write_text(text + "\n")
