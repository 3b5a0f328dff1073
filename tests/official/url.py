"""Run the official URL and TSA code on the reference inputs and keep what they return beside this file.

    git clone https://github.com/VICO-UoE/URL && python -m tests.official.url URL

Both adapt `networks.SmallResNet` to the support, whose images are the maps of the inputs, and classify the queries.
Adapters in matrix form, learning rates for domains that the network was not trained on. In float64 only: Adadelta divides
by the size of small gradients, so that rounding of float32 moves some scores by 0.1.
"""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from types import ModuleType
from unittest import mock

import numpy as np
import torch

from fewshot.episodes.types import Episodes
from tests.conftest import SHARED
from tests.official.networks import SmallResNet
from tests.official.runs import checkout_argument, describe, keep
from tests.oracle import as_images, inputs_of, load_inputs

CONFIGURATION = {"test.tsa_opt": "alpha+beta", "test.tsa_ad_type": "residual", "test.tsa_ad_form": "matrix",
                 "test.tsa_init": "eye", "test.distance": "cos"}
NETWORK = SmallResNet().double()


def url(episodes: Episodes) -> np.ndarray:
    """The official scores [E, Q, N]."""
    official, found = import_module("models.pa"), []
    for support, labels, query in zip(episodes.support, episodes.support_labels, episodes.query, strict=True):
        with torch.no_grad():
            support, query = map(NETWORK, (support, query))
        learned = official.pa(support, labels, max_iter=40, lr=1.0)
        support, query = (official.apply_selection(x, learned).detach() for x in (support, query))
        found.append(scores(support, labels, query))
    return torch.stack(found).numpy()


def tsa(episodes: Episodes) -> np.ndarray:
    """The official scores [E, Q, N]."""
    official, found = import_module("models.tsa"), []
    for support, labels, query in zip(episodes.support, episodes.support_labels, episodes.query, strict=True):
        model = official.resnet_tsa(copy.deepcopy(NETWORK))
        model.reset()
        official.tsa(support, labels, model, max_iter=40, lr=0.5, lr_beta=1)
        with torch.no_grad():
            found.append(scores(model.beta(model.embed(support)), labels, model.beta(model.embed(query))))
    return torch.stack(found).numpy()


def scores(support: torch.Tensor, labels: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """What the official `prototype_loss` puts into its softmax."""
    losses = import_module("models.losses")
    any_labels = labels[torch.arange(len(query)) % len(labels)]  # it counts the classes among them
    with mock.patch.object(losses, "cross_entropy_loss", lambda logits, targets: (logits, None, None)):
        return losses.prototype_loss(support, labels, query, any_labels, distance="cos")[0]


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    sys.path.insert(0, str(checkout))  # its files import one another
    config = ModuleType("config")  # the official one reads the command line and asks for a folder of data
    config.args = CONFIGURATION
    torch.set_default_dtype(torch.float64)
    sys.modules |= {"config": config, "gin": ModuleType("gin")}
    for method, run, file in (("url", url, "models/pa.py"), ("tsa", tsa, "models/tsa.py")):
        inputs = inputs_of(SHARED / "oracles", "dn4")
        for name in inputs:
            keep(method, name, logits_f64=run(as_images(*load_inputs(SHARED / "oracles", name))))
        describe(method, checkout, method=method, repository="VICO-UoE/URL", entry_point=file, primary_output="logits",
                 per_input={name: {} for name in inputs}, hyperparameters=CONFIGURATION,
                 expected_agreement={"float64": 1e-7})


if __name__ == "__main__":
    main()
