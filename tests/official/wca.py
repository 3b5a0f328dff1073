"""Run the official WCA, its texts, on the reference inputs with texts and keep what it returns beside this file.

    git clone https://github.com/tmlr-group/WCA && python -m tests.official.wca WCA

A text model stands in for CLIP that knows the vectors of three sentences of each class (`tests.oracle.sentences_near`) and
that of its name. In float64; a few seconds on one core.
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
from tests.oracle import load_inputs, sentences_near

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
SENTENCES = 3


def official_logits(program, e: Episodes) -> np.ndarray:
    """100 times the cosines [Q, N]."""
    vectors: dict[str, Tensor] = {}
    for label, (name, sentences) in enumerate(zip(e.text[0], sentences_near(e.text, SENTENCES)[0], strict=True)):
        vectors[f"a photo of a {label}."] = name
        vectors |= {f"{label}, {number}": vector for number, vector in enumerate(sentences)}
    names = [str(label) for label in range(e.ways)]
    described = {name: [f"{name}, {number}" for number in range(SENTENCES)] for name in names}
    model = mock.Mock(encode_text=lambda texts: torch.stack([vectors[text] for text in texts]))
    tokens = mock.Mock(side_effect=lambda texts, truncate: mock.Mock(to=lambda device: [texts] if isinstance(texts, str)
                                                                    else texts))
    with mock.patch.object(program.clip, "tokenize", tokens):
        weights = program.zeroshot_classifier(model, names, described, is_template=False,
                                              tt_scale=torch.tensor(2.0, dtype=torch.float64).exp(), device="cpu")
    query = torch.nn.functional.normalize(e.query[0], dim=-1)
    return (100 * query @ weights).numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))
    with mock.patch.dict(sys.modules, {name: mock.MagicMock(__all__=[]) for name in ("clip", "my_datasets", "utils")}):
        import helper as program  # noqa: PLC0415 - a file of the checkout

    for inputs in INPUTS:
        logits = official_logits(program, load_inputs(SHARED / "oracles", inputs)[0])
        keep("wca", inputs, logits_f64=logits, sentences=np.array(SENTENCES))
    describe("wca", checkout, method="wca", repository="tmlr-group/WCA", entry_point="helper.py zeroshot_classifier",
             primary_output="logits", hyperparameters={"tt_scale": "exp(2)"},
             per_input={inputs: {} for inputs in INPUTS}, expected_agreement={"float64": 1e-9})


if __name__ == "__main__":
    main()
