"""Run the official training-free TFUP on the reference inputs with texts and keep what it returns beside this file.

    git clone https://github.com/wlb12345/TFUP && python -m tests.official.tfup TFUP

In float64, which the program is made to work in throughout: it keeps divergences in half precision. A few seconds on one
core.
"""

from __future__ import annotations

import sys
import tempfile
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
ABSENT = ("clip", "clip.clip", "clip.model", "dassl", "dassl.data", "dassl.data.datasets", "dassl.config", "dassl.utils",
          "read_data", "tqdm")
ALPHA, BETA, SHARE = 0.3, 1, 0.3


def stub(name: str) -> ModuleType:
    """A module for one that is not installed; everything in it is a mock."""
    module = mock.MagicMock(__all__=[])
    module.__name__, module.__spec__ = name, None
    return module


def official_logits(program, e: Episodes) -> np.ndarray:
    """The logits [Q, N]."""
    query, text = e.query[0], e.text[0]
    m = min(16, max(9, int(len(query) * SHARE / len(text))))
    untold = torch.zeros(len(query), dtype=torch.int64)  # labels of the queries, of which it prints how many are right
    config = SimpleNamespace(TRAINER=SimpleNamespace(TFUP=SimpleNamespace(alpha=ALPHA, beta=BETA)))
    seen, device, empty, zeros = [], torch.device, torch.empty, torch.zeros

    def wide(*shape, dtype=None, **options):
        return empty(*shape, dtype=torch.float64 if dtype == torch.float16 else dtype, **options)

    with (tempfile.TemporaryDirectory() as folder, mock.patch.object(torch, "device", lambda name: device("cpu")),
          mock.patch.object(torch, "empty", wide),
          mock.patch.object(torch, "zeros", lambda *shape, dtype=torch.float64: zeros(*shape, dtype=dtype)),
          mock.patch.object(program, "cls_acc", lambda logits, labels: seen.append(logits) or 0.0)):
        program.refine_few_shots_without_label(range(len(text)), text, query, untold, [mock.MagicMock()] * len(query),
                                                m, folder)
        keys, labels = (torch.load(f"{folder}/cache_{name}.pt", weights_only=True) for name in ("keys", "values"))
        values = torch.nn.functional.one_hot(labels).double()
        program.TFUP(config, keys, values, query, untold, text)
    return seen[1].numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))
    with mock.patch.dict(sys.modules, {name: stub(name) for name in ABSENT}):
        import main as program  # noqa: PLC0415 - a file of the checkout

        for inputs in INPUTS:
            keep("tfup", inputs, logits_f64=official_logits(program, load_inputs(SHARED / "oracles", inputs)[0]))
    describe("tfup", checkout, method="tfup", repository="wlb12345/TFUP", primary_output="logits",
             entry_point="utils.py refine_few_shots_without_label, main.py TFUP",
             hyperparameters={"alpha": ALPHA, "beta": BETA, "cache_proportion": SHARE},
             per_input={inputs: {} for inputs in INPUTS}, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
