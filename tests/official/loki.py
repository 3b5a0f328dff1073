"""Run the official Loki code on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/SprocketLab/loki && python -m tests.official.loki loki

The known classes are the first half of those of an input, their scores 10 times the cosines of a query with their texts;
asked for are all classes, half of them unknown. The official code takes the table of distances, which is made here.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep, official_module
from tests.oracle import load_inputs, with_known_scores

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    program = official_module(checkout, "simclr_exps/loki.py")
    for name in INPUTS:
        given, _ = load_inputs(SHARED / "oracles", name)
        known = given.ways // 2
        scores = with_known_scores(given, known).query[0]
        distances = torch.cdist(given.text[0, :known], given.text[0], compute_mode="donot_use_mm_for_euclid_dist")
        found = program.loki_exact_predict(scores.softmax(-1), distances)
        keep("loki", name, logits_f64=found.numpy(), known_classes=np.array(known))
    describe("loki", checkout, method="loki", repository="SprocketLab/loki",
             entry_point="simclr_exps/loki.py loki_exact_predict", primary_output="logits",
             expected_agreement={"float64": 1e-12}, per_input={name: {} for name in INPUTS})


if __name__ == "__main__":
    main()
