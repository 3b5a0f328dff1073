"""Run the official CapS-Adapter on the reference inputs with texts and keep what it returns.

    git clone https://github.com/WLuLi/CapS-Adapter
    python -m tests.official.caps_adapter CapS-Adapter

The text of its class stands for the caption of an image. The search is made to try one value of each hyper-parameter, and
validation images are the queries. Those are 95, so that the last five have no divergence. In float64.
"""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import torch

from tests.conftest import SHARED
from tests.official.cache_models import official_program
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
QUERIES = 95
TRIED = {20: 1, 200: 10, 50: 20, 11: 3}  # values of a list -> the one that is tried: of alpha, beta, gamma and delta
VALUES = {"alpha": 2.595, "beta": 3.45, "gamma": 12.06, "delta": 0.3}  # which these are


def official_logits(checkout: Path, name: str) -> np.ndarray:
    """[Q, N] of one input."""
    episodes, raw = load_inputs(SHARED / "oracles", name)
    support, query, text = (torch.nn.functional.normalize(x[0], dim=-1) for x in (episodes.support, episodes.query,
                                                                                  episodes.text))
    query, labels, found = query[:QUERIES], episodes.support_labels[0], []
    with official_program(checkout, "madapter", ("tqdm",)) as program:
        program.tqdm = lambda items, **_: items
        args = type("Settings", (), {"temperature": 0.5})
        # The program wants features of images and captions [D, S], of classes [D, N].
        _, divergences, _ = program.get_kl_div_sims(args, query, query, support.T, text.T)

        def accuracy(output, target, topk):
            found.append(output)
            return [1.0, 1.0]

        program.accuracy = accuracy
        program.range = lambda count: [TRIED[count]] if count in TRIED else builtins.range(count)
        targets = torch.from_numpy(raw["test_labels"])[:QUERIES]
        values = torch.nn.functional.one_hot(labels).double()
        chosen = program.hparam_search(query, targets, query, targets, support.T, text[labels].T, values, text.T,
                                       divergences, divergences)
    np.testing.assert_allclose(chosen[1:], [VALUES[name] for name in ("alpha", "beta", "gamma", "delta")])
    return found[-1].numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0]).resolve()
    for name in INPUTS:
        keep("caps_adapter", name, logits_f64=official_logits(checkout, name))
    describe("caps_adapter", checkout, method="caps_adapter", repository="WLuLi/CapS-Adapter",
             entry_point="madapter.py get_kl_div_sims, hparam_search", primary_output="logits",
             per_input={name: {} for name in INPUTS}, hyperparameters={"temperature": 0.5, **VALUES},
             expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
