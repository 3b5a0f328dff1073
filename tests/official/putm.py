"""Run the official PUTM program on the reference inputs and keep what it returns beside this file.

    git clone https://github.com/RashLog/PUTM && python -m tests.official.putm PUTM

The program runs in float64 and, as it draws its initial weights at random, with those of the registered method (seed 0,
variant "official"). It takes the support class by class, or shot by shot where its setting is "balanced"; the stored
`support_order` says which support items that are. The first two episodes of every 5-way input of 75 queries, the only
sizes that the program can treat; some three seconds an episode on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from unittest import mock

import numpy as np
import torch

from fewshot.methods.contract import create_method
from tests.conftest import SHARED
from tests.official.runs import checkout_argument, describe, keep, official_module, support_order
from tests.oracle import load_inputs, with_support_order

EPISODES = 2
# the official configuration -> our value of it, its own, and the inputs
SETTINGS = {
    "balanced": ("balanced", {"rho": 1.0, "theta": 0.001},
                 ("caltech28px_5w1s_balanced", "caltech28px_5w5s_balanced", "caltech_5w1s_balanced",
                  "caltech_5w5s_balanced")),
    "dirichlet": ("unknown", {"rho": 0.5, "theta": 0.0},
                  ("caltech28px_5w5s_dirichlet", "caltech_5w1s_dirichlet", "caltech_5w5s_dirichlet")),
}


def probabilities(program, name: str, distribution: str) -> tuple[np.ndarray, np.ndarray]:
    """The official class probabilities [E, Q, N], and the order [E, S] in which the support was given."""
    prior, config, _ = SETTINGS[distribution]
    episodes = load_inputs(SHARED / "oracles", name)[0][:EPISODES]
    order = support_order(episodes, by_shot=distribution == "balanced")
    episodes = with_support_order(episodes, order)
    points = torch.cat([episodes.support, episodes.query], dim=1)
    untold = torch.zeros(episodes.query.shape[:2], dtype=torch.int64)  # labels of the queries
    labels = torch.cat([episodes.support_labels, untold], dim=1)
    weights = create_method("putm", variant="official", query_prior=prior)._weights(points[:, :, : points.shape[1]])
    initialise, accuracy, found = program.BNavigator.__init__, program.MAP.getAccuracy, []

    def with_these_weights(navigator, *args, **kwargs):
        initialise(navigator, *args, **kwargs)
        for parameter, weight in zip(navigator.params, weights, strict=False):  # the last bias stays 0
            parameter.data.copy_(weight)

    def kept(solver, probas):
        found.append(probas)
        return accuracy(solver, probas)

    args = argparse.Namespace(n_ways=5, shot=order.shape[1] // 5, batch_size=len(episodes), n_query=15, n_epochs=50,
                              epochs=30, hidden=128, alpha=[0.2, 0.1], beta=0.6, lam=10, lr=0.001, use_plda=False,
                              use_km=False, balanced=distribution, **config)
    with (mock.patch.object(program.BNavigator, "__init__", with_these_weights),
          mock.patch.object(program.MAP, "getAccuracy", kept), mock.patch.object(torch.Tensor, "cuda", lambda x: x),
          contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())):
        program.PUTM(None, "cpu", None, args).run_task(points, labels, args)
    return found[-1].numpy(), order.numpy()


def main() -> None:
    checkout = checkout_argument(__doc__.splitlines()[0])
    torch.set_default_dtype(torch.float64)
    program = official_module(checkout, "methods/putm.py")
    for distribution, (prior, config, inputs) in SETTINGS.items():
        official = f"putm_{distribution}"
        for name in inputs:
            probs, order = probabilities(program, name, distribution)
            keep(official, name, probs_f64=probs, support_order=order)
        describe(official, checkout, method="putm", repository="RashLog/PUTM", entry_point="methods/putm.py PUTM.run_task",
                 hyperparameters=config, primary_output="probs", expected_agreement={"float64": 1e-9},
                 initial_weights={"query_prior": prior, "variant": "official", "seed": 0},
                 per_input={name: {} for name in inputs})


if __name__ == "__main__":
    main()
