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
import importlib.util
import io
import json
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from fewshot.methods.base import create_method
from tests.conftest import SHARED
from tests.oracle import load_inputs

HERE = Path(__file__).parent
EPISODES = 2
# the official configuration -> its values of ours, and the inputs
SETTINGS = {
    "balanced": ({"query_prior": "balanced"}, {"rho": 1.0, "theta": 0.001},
                 ("caltech28px_5w1s_balanced", "caltech28px_5w5s_balanced", "caltech_5w1s_balanced",
                  "caltech_5w5s_balanced")),
    "dirichlet": ({"query_prior": "unknown"}, {"rho": 0.5, "theta": 0.0},
                  ("caltech28px_5w5s_dirichlet", "caltech_5w1s_dirichlet", "caltech_5w5s_dirichlet")),
}


def official_program(checkout: Path):
    spec = importlib.util.spec_from_file_location("official_putm", checkout / "methods" / "putm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probabilities(program, name: str, distribution: str) -> tuple[np.ndarray, np.ndarray]:
    """The official class probabilities [E, Q, N], and the order [E, S] in which the support was given."""
    params, config, _ = SETTINGS[distribution]
    episodes, _ = load_inputs(SHARED / "oracles", name)
    episodes = episodes[:EPISODES]
    count, ways, shots = len(episodes), episodes.ways, episodes.support.shape[1] // episodes.ways
    order = episodes.support_labels.argsort(dim=1, stable=True)
    if distribution == "balanced":
        order = order.view(count, ways, shots).transpose(1, 2).flatten(1)
    support = episodes.support.take_along_dim(order.unsqueeze(-1), dim=1)
    labels = episodes.support_labels.take_along_dim(order, dim=1)
    points = torch.cat([support, episodes.query], dim=1)
    weights = create_method("putm", variant="official", **params)._weights(points[:, :, : points.shape[1]])
    found = []

    initialise, accuracy = program.BNavigator.__init__, program.MAP.getAccuracy

    def with_these_weights(navigator, *args, **kwargs):
        initialise(navigator, *args, **kwargs)
        for parameter, weight in zip(navigator.params, weights, strict=False):  # the last bias stays 0
            parameter.data.copy_(weight)

    def kept(solver, probas):
        found.append(probas)
        return accuracy(solver, probas)

    args = argparse.Namespace(n_ways=ways, shot=shots, batch_size=count, n_query=15, n_epochs=50, epochs=30, hidden=128,
                              alpha=[0.2, 0.1], beta=0.6, lam=10, lr=0.001, use_plda=False, use_km=False,
                              balanced=distribution, **config)
    every = torch.cat([labels, labels.new_zeros(count, episodes.query.shape[1])], dim=1)  # query labels are not told
    with (mock.patch.object(program.BNavigator, "__init__", with_these_weights),
          mock.patch.object(program.MAP, "getAccuracy", kept), mock.patch.object(torch.Tensor, "cuda", lambda x: x),
          contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())):
        program.PUTM(None, "cpu", None, args).run_task(points, every, args)
    return found[-1].numpy(), order.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout
    torch.set_default_dtype(torch.float64)
    program = official_program(checkout)
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    for distribution, (params, config, inputs) in SETTINGS.items():
        official = f"putm_{distribution}"
        for name in inputs:
            probs, order = probabilities(program, name, distribution)
            np.savez_compressed(HERE / f"{official}__{name}.npz", probs_f64=probs, support_order=order)
            print(f"{official}, {name}", flush=True)
        description = {"method": "putm", "repository": "RashLog/PUTM", "commit": commit.stdout.strip(),
                       "entry_point": f"methods/putm.py PUTM.run_task, config/{distribution}/methods_config/putm.yaml",
                       "initial_weights": {**params, "variant": "official", "seed": 0}, "hyperparameters": config,
                       "precision": "float64", "primary_output": "probs", "torch": torch.__version__,
                       "expected_agreement": {"float64": 1e-9}, "per_input": {name: {} for name in inputs}}
        (HERE / f"{official}.json").write_text(json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    main()
