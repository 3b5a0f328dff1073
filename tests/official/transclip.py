"""Run the official TransCLIP on the reference inputs with texts and keep what it returns beside this file.

    git clone https://github.com/MaxZanella/transduction-for-vlms && python -m tests.official.transclip transduction-for-vlms

In float64 and in float32, without support and with it; with support for one value of gamma at a time, as the program goes on
from the state that the value before left. A few seconds on one core.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fewshot.episodes.types import Episodes
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
GAMMAS = {"caltech_vlm_20c1s": 0.2, "caltech_vlm_20c4s": 0.2}


def probabilities(program, e: Episodes, gamma: float | None) -> np.ndarray:
    """The official soft labels [Q, N]."""
    support, query, text = (torch.nn.functional.normalize(x[0], dim=-1) for x in (e.support, e.query, e.text))
    labels = torch.nn.functional.one_hot(e.support_labels[0])
    untold = torch.arange(len(query)) % e.ways  # labels of the queries, of which it takes the number of classes
    given = (support, labels, support, e.support_labels[0]) if gamma is not None else (None,) * 4
    chosen = (0.5, [gamma], support, e.support_labels[0]) if gamma is not None else (1, [0], None, None)
    double = query.dtype
    with (mock.patch.object(Tensor, "cuda", lambda x: x), mock.patch.object(Tensor, "float", lambda x: x.to(double)),
          mock.patch.object(torch, "eye", lambda n: torch.diag(torch.ones(n, dtype=double))),
          mock.patch.object(program.Gaussian, "cuda", lambda x: x),
          mock.patch.object(program, "cls_acc", lambda *unused: 0.0),  # of labels that it was not told
          mock.patch.object(program, "get_parameters", lambda *unused: chosen)):
        return program.TransCLIP_solver(*given, query, untold, text.T, verbose=False)[0].numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))
    from TransCLIP_solver import TransCLIP as program  # noqa: PLC0415, N811 - a file of the checkout

    for name, few in (("transclip_zero_shot", False), ("transclip_few_shot", True)):
        notes = {}
        for inputs in INPUTS:
            gamma = GAMMAS[inputs] if few else None
            double, single = (probabilities(program, load_inputs(SHARED / "oracles", inputs, dtype)[0], gamma)
                              for dtype in (torch.float64, torch.float32))
            keep(name, inputs, probs=single.astype(np.float32), probs_f64=double)
            notes[inputs] = {"tolerance_float32": max(1e-5, 20 * float(np.abs(double - single).max())), "gamma": gamma}
        describe(name, checkout, method="transclip", repository="MaxZanella/transduction-for-vlms",
                 entry_point="TransCLIP_solver/TransCLIP.py TransCLIP_solver", primary_output="probs", per_input=notes,
                 hyperparameters={"lambda": 0.5 if few else 1, "iterations": 10, "neighbours": 3},
                 expected_agreement={"float64": 1e-8})


if __name__ == "__main__":
    main()
