"""Run the official LP++ on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/FereshteShakeri/FewShot-CLIP-Strong-Baseline
    python -m tests.official.lp_plus_plus FewShot-CLIP-Strong-Baseline

In float64, where the program computes in half precision. The intercept starts at the values that `variant="official"` draws.
Kept are the logits of the test features after the last of the steps, not of the one that is best on validation features.
"""

from __future__ import annotations

import contextlib
import io
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

from fewshot.ops.heads import uniform
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
STEPS = 300


def official(checkout: Path) -> ModuleType:
    """The file of LP++, without the other methods that its package imports."""
    package = ModuleType("methods")
    package.__path__ = [str(checkout / "methods")]
    sys.modules["methods"] = package
    return import_module("methods.linear_probe_p2")


def logits(program: ModuleType, raw: dict[str, np.ndarray]) -> np.ndarray:
    """The official logits [Q, N]."""
    train, test, text = (torch.from_numpy(raw[name]).double() for name in ("train_features", "test_features", "text"))
    labels = torch.from_numpy(raw["train_labels"]).long()
    made, real = {}, torch.nn.Linear

    def linear(*sizes: int, bias: bool) -> torch.nn.Linear:
        made["head"] = real(*sizes, bias=bias).double()
        made["head"].bias.data = uniform((sizes[1], 1), sizes[0] ** -0.5, 0, "lp_plus_plus")[:, 0]
        return made["head"]

    def variable(value: torch.Tensor, requires_grad: bool) -> torch.Tensor:
        made["alpha"] = value.detach().requires_grad_(requires_grad)
        return made["alpha"]

    # In place, it divides the features by their length.
    model = SimpleNamespace(encode_image=torch.clone, dtype=torch.float64)
    with (mock.patch.object(torch.Tensor, "cuda", lambda x: x), mock.patch.object(torch.nn.Module, "cuda", lambda x: x),
          mock.patch.object(torch, "float16", torch.float64), mock.patch.object(torch.nn, "Linear", linear),
          mock.patch.object(program, "Variable", variable), contextlib.redirect_stdout(io.StringIO())):
        method = program.LinearProbe_P2({"train_epoch": STEPS, "shots": len(train) // len(text), "dataset": "",
                                         "output_dir": ""})
        method([(train, labels)], [(train, labels)], test, torch.from_numpy(raw["test_labels"]).long(), text.T, model, [])
        return (made["head"](test) + made["alpha"] * (test @ text.T)).detach().numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    program = official(checkout)
    for name in INPUTS:
        raw = load_inputs(SHARED / "oracles", name)[1]
        for part in ("train_features", "test_features", "text"):  # in float32 they are 1e-8 off unit length
            raw[part] = raw[part] / np.linalg.norm(raw[part].astype(np.float64), axis=-1, keepdims=True)
        keep("lp_plus_plus", name, logits_f64=logits(program, raw))
    describe("lp_plus_plus", checkout, method="lp_plus_plus", repository="FereshteShakeri/FewShot-CLIP-Strong-Baseline",
             entry_point="methods/linear_probe_p2.py LinearProbe_P2", primary_output="logits",
             per_input={name: {} for name in INPUTS}, hyperparameters={"train_epoch": STEPS},
             expected_agreement={"float64": 1e-8})


if __name__ == "__main__":
    main()
