"""Run the official fine-tuning stage of P>M>F on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/hushell/pmf_cvpr22 && python -m tests.official.pmf pmf_cvpr22

It fine-tunes `networks.SmallResNet` on the support, whose images are the maps of the inputs, and classifies the queries. In
float64, and without augmentation, which is random.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from importlib import import_module
from types import ModuleType
from unittest import mock

import torch

from tests.conftest import SHARED
from tests.official.networks import SmallResNet
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import as_images, inputs_of, load_inputs

SETTINGS = {"num_iters": 50, "lr": 1e-3, "aug_prob": 0.0}


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    models = ModuleType("models")  # without the official __init__, which imports all its backbones
    models.__path__ = [str(checkout / "models")]
    sys.modules |= {"models": models, "ml_collections": ModuleType("ml_collections")}
    official, inputs = import_module("models.deploy"), inputs_of(SHARED / "oracles", "dn4")
    model = official.ProtoNet_Finetune(SmallResNet(), **SETTINGS).double().eval()
    model.load_state_dict(copy.deepcopy(model.state_dict()))  # it keeps the weights to which it returns
    for name in inputs:
        episodes = as_images(*load_inputs(SHARED / "oracles", name))
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double), contextlib.redirect_stderr(io.StringIO()):
            logits = torch.cat([model(*parts) for parts in zip(episodes.support.split(1), episodes.support_labels.split(1),
                                                               episodes.query.split(1), strict=True)])
        keep("pmf", name, logits_f64=logits.numpy())
    describe("pmf", checkout, method="pmf", repository="hushell/pmf_cvpr22", primary_output="logits",
             entry_point="models/deploy.py ProtoNet_Finetune", hyperparameters=SETTINGS,
             per_input={name: {} for name in inputs}, expected_agreement={"float64": 1e-7})


if __name__ == "__main__":
    main()
