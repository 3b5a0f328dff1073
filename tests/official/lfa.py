"""Run the official refinement of LFA on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/saic-fi/LFA && python -m tests.official.lfa LFA

In float64, all items in each step, without noise and dropout. It starts from our map, since the official one is arbitrary
where there are fewer classes than channels; the agreement on what is determined of that is with other outputs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from fewshot.methods.lfa import rotation
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import load_inputs

INPUTS = ("caltech_vlm_20c1s", "caltech_vlm_20c4s")
BETA = 0.85
SETTINGS = {"n_iters": 50, "learning_rate": 5e-4, "cosine_end_lr": 1e-7, "weight_decay": 5e-4, "knn": 3,
            "arerank_scale": 4.0, "refinement_loss": "adaptive", "gaussian_noise": 0.0, "dropout": 0.0, "five_crop": False,
            "interpolate_features": False, "spectral_proj": False, "orthogonalize": False}


def logits(program: ModuleType, episodes: Episodes) -> np.ndarray:
    """Cosines [Q, N] of the mapped test features with the texts."""
    support, text, query = (torch.nn.functional.normalize(x[0], dim=-1) for x in (episodes.support, episodes.text,
                                                                                 episodes.query))
    labels, (basis, turn) = episodes.support_labels[0], rotation(episodes)
    start = torch.eye(support.shape[1]).double() + (1 - BETA) * (basis @ turn @ basis.transpose(1, 2))[0]
    settings = SimpleNamespace(**SETTINGS)
    with mock.patch.object(program, "get_accuracies", lambda *arguments, **options: {}):
        found = program.mapping_refinement(settings, program.get_loss_func(settings), start, {}, [], support, text[labels],
                                           text, labels, batch_size=len(support), verbose=False)
    moved = query @ found
    return (moved / moved.norm(dim=-1, keepdim=True) @ text.T).numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))  # its files import one another
    torch.set_default_dtype(torch.float64)  # of the zeros in its loss
    # Logging, and modules that extract features.
    sys.modules |= {name: mock.MagicMock(__name__=name) for name in ("loguru", "save_features", "utils")}
    program = import_module("feature_alignment")
    for name in INPUTS:
        found = logits(program, load_inputs(SHARED / "oracles", name)[0])
        keep("lfa_refined", name, logits_f64=found, logit_scale=np.ones(()))  # cosines
    describe("lfa_refined", checkout, method="lfa", repository="saic-fi/LFA",
             entry_point="feature_alignment.py mapping_refinement", primary_output="logits",
             per_input={name: {} for name in INPUTS}, hyperparameters={"beta": BETA, **SETTINGS},
             expected_agreement={"float64": 1e-8})


if __name__ == "__main__":
    main()
