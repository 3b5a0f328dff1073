from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.methods.contract import create_method
from tests.oracle import inputs_of, load_inputs, load_outputs

# The official outputs are one-hot: labels are compared. tests/methods/test_em_dirichlet.py has the plain loop.
AGREEMENT = [("hard_em_dirichlet", {"k_eff": 5}, "hard_em_dirichlet")]
INPUTS = ["caltech_simplex_10w4s_keff5", pytest.param("caltech_simplex_20w4s_keff5", marks=pytest.mark.slow)]


@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_with_official_code(oracles, inputs):
    assert inputs in inputs_of(oracles, "hard_em_dirichlet")
    outputs, _ = load_outputs(oracles, "hard_em_dirichlet", inputs)
    method = create_method("hard_em_dirichlet", k_eff=5)
    exact = method.refine(load_inputs(oracles, inputs)[0][:4])
    assert np.array_equal(exact.logits.argmax(-1).numpy(), outputs["preds"][:4])
    np.testing.assert_allclose(exact.prototypes.numpy(), outputs["dirichlet_alpha"], rtol=1e-6)
    single = method(load_inputs(oracles, inputs, torch.float32)[0])
    assert np.array_equal(single.argmax(-1).numpy(), outputs["preds"])


def test_parameters_are_fitted_to_one_hot_assignments():
    """With a single query, its class is fitted to support and query alike, every other class to its support alone."""
    episodes = random_episodes(dim=5, queries=1, shots=6).with_features(lambda x: x.softmax(-1))
    settings = {"mm_steps": 5000, "mm_tolerance": 1e-24}
    found = create_method("hard_em_dirichlet", iterations=3, **settings).refine(episodes)
    for e in range(3):
        winner = int(found.logits[e, 0].argmax())
        for n in range(5):
            x = episodes.support[e][episodes.support_labels[e] == n]
            x = torch.cat([x, episodes.query[e]]) if n == winner else x
            alpha = found.prototypes[e, n]
            torch.testing.assert_close(torch.digamma(alpha) - torch.digamma(alpha.sum()), x.log().mean(0), atol=1e-6,
                                       rtol=0)
