from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method
from tests.conftest import SHARED
from tests.oracle import inputs_of, load_inputs, load_outputs


def released(raw_inputs) -> dict:
    """The released EuroSAT values (one set for all inputs), from the description of the reference outputs."""
    folder = SHARED / "oracles"
    name = inputs_of(folder, "unem_dirichlet")[0]
    raw = load_outputs(folder, "unem_dirichlet", name)[1]["per_input"][name]["raw"]
    return {"learned": {"scale": raw["emb_t"], "prior": [raw[f"gamma.{i}"] for i in range(10)],
                        "temperature": [raw[f"t.{i}"] for i in range(10)]}}


AGREEMENT = [("unem_dirichlet", released, "unem_dirichlet")]
INPUTS = ["caltech_simplex_10w4s_keff5", pytest.param("caltech_simplex_20w4s_keff5", marks=pytest.mark.slow)]


@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_with_official_code(oracles, inputs):
    """From the cosines that the official code was given, and from the stored probabilities softmax(30 cos)."""
    outputs, description = load_outputs(oracles, "unem_dirichlet", inputs)
    episodes, raw = load_inputs(oracles, inputs)
    cosines = dataclasses.replace(episodes, support=torch.from_numpy(raw["support_cos"]).double(),
                                  query=torch.from_numpy(raw["query_cos"]).double())
    for simplex, given in (("cosines", cosines), ("auto", episodes)):
        method = create_method("unem_dirichlet", simplex=simplex, **released(raw))
        np.testing.assert_allclose(method(given[:4]).softmax(-1).numpy(), outputs["probs_f64"], rtol=0,
                                   atol=description["expected_agreement"]["float64"])
    single = method(episodes.to(torch.float32)).softmax(-1).numpy()
    tolerance = description["per_input"][inputs]["tolerance_float32"]
    np.testing.assert_allclose(single, outputs["probs"], atol=tolerance, rtol=0)
    assert np.array_equal(single.argmax(-1), outputs["preds"])


def simplex_episodes(**kwargs):
    return random_episodes(dim=kwargs.get("ways", 5), **kwargs).with_features(lambda x: (3 * x).softmax(-1))


def test_unit_values_are_em_dirichlet():
    episodes = simplex_episodes()
    one = math.log(math.e - 1)
    values = {"scale": 30.0, "prior": [one] * 4, "temperature": [-1000.0] * 4}
    found = create_method("unem_dirichlet", layers=4, learned=values, mm_steps=120).refine(episodes)
    expected = create_method("em_dirichlet", iterations=4, mm_steps=120).refine(episodes)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.prototypes, expected.prototypes)


def test_gradients_of_all_values():
    episodes = simplex_episodes(episodes=2, ways=3, shots=2, queries=5)
    method = create_method("unem_dirichlet", layers=2, mm_steps=60, mm_tolerance=0.0,
                           learned={"scale": 25.0, "prior": [0.5, 1.0], "temperature": [1.0, 0.3]})
    names = [name for name, _ in method.named_parameters()]

    def run(*values):
        return torch.func.functional_call(method, dict(zip(names, values, strict=True)), (episodes,)).exp()

    assert torch.autograd.gradcheck(run, [p.detach().clone().requires_grad_() for p in method.parameters()], atol=1e-6)


def test_starts_as_documented():
    assert create_method("unem_dirichlet", layers=1).learned == {"scale": 30.0, "prior": [20.0], "temperature": [1.0]}
    with pytest.raises(FewshotError, match="simplex='soft'"):
        create_method("unem_dirichlet", simplex="soft")
