"""Run the official SOC classifier of COSOC on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/Frankluox/LightningFSL && python -m tests.official.cosoc LightningFSL

The inputs have no crops: the 256 features of an item stand for four crops of 64. The program computes in float64 and in
float32, and takes the support shot by shot; its own order of support does not matter to the outcome. The first four
episodes of every input; two seconds an episode on one core.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep, official_module, support_order
from tests.oracle import inputs_of, load_inputs, with_support_order

CROPS, ALPHA, BETA = 4, 0.9, 0.8
EPISODES = 4


def scores(program, episodes: Episodes) -> np.ndarray:
    """The official scores [E, Q, N]."""
    episodes = with_support_order(episodes, support_order(episodes, by_shot=True))
    points = torch.cat([episodes.support, episodes.query], dim=1)
    items = points.unflatten(2, (CROPS, -1, 1, 1)).flatten(0, 1)  # [E (S + Q), V, C, 1, 1]
    classifier = program.SOC(CROPS, ALPHA, BETA)
    with (mock.patch.object(torch.Tensor, "cuda", lambda x: x),
          mock.patch.object(torch, "FloatTensor", lambda *size: torch.empty(*size, dtype=points.dtype))):
        found = classifier(lambda x: x, items, episodes.ways, episodes.support.shape[1] // episodes.ways, len(episodes))
    return found.numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    program = official_module(checkout, "architectures/classifier/SOC.py")
    notes = {}
    for name in inputs_of(SHARED / "oracles", "paddle"):
        double, single = (scores(program, load_inputs(SHARED / "oracles", name, dtype)[0][:EPISODES])
                          for dtype in (torch.float64, torch.float32))
        keep("cosoc", name, logits=single, logits_f64=double)
        notes[name] = {"tolerance_float32": max(1e-5, 20 * float(np.abs(double - single).max()))}
    describe("cosoc", checkout, method="cosoc", repository="Frankluox/LightningFSL",
             entry_point="architectures/classifier/SOC.py SOC", primary_output="logits", per_input=notes,
             hyperparameters={"num_patch": CROPS, "alpha": ALPHA, "beta": BETA}, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
