from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.contract import create_method, method_parameters
from tests.conftest import SHARED
from tests.methods.agreement import check_soft
from tests.oracle import inputs_of, load_outputs


def released(raw_inputs) -> dict:
    """The released values for the number of shots of the inputs, from the description of the reference outputs."""
    folder = SHARED / "oracles"
    name = next(x for x in inputs_of(folder, "unem_gaussian") if f"w{int(raw_inputs['shots'])}s_" in x)
    raw = load_outputs(folder, "unem_gaussian", name)[1]["per_input"][name]["raw"]
    return {"learned": {"scale": raw["t1"], "prior": [raw[f"gamma.{i}"] for i in range(10)],
                        "temperature": [raw[f"t2.{i}"] for i in range(10)]}}


AGREEMENT = [("unem_gaussian", released, "unem_gaussian")]
ONE = math.log(math.e - 1)  # softplus(ONE) = 1


def test_agrees_with_official_code(oracles):
    check_soft(oracles, *AGREEMENT[0])


@pytest.mark.parametrize("layers", [1, 10])
def test_unit_values_are_paddle(layers):
    episodes = random_episodes(shots=3, queries=20)
    values = {"scale": ONE, "prior": [ONE] * layers, "temperature": [-1000.0] * layers}
    found = create_method("unem_gaussian", layers=layers, learned=values).refine(episodes, history=True)
    expected = create_method("paddle", iterations=layers, scale_by_range=False).refine(episodes, history=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-11, rtol=0)
    torch.testing.assert_close(torch.stack(found.history), torch.stack(expected.history), atol=1e-12, rtol=0)
    assert found.iterations.tolist() == [layers] * 3 and found.converged.all()


def test_equals_a_plain_loop():
    episodes = random_episodes(shots=2, queries=12)
    values = {"scale": 0.3, "prior": [0.5, 2.0, -1.0], "temperature": [1.0, -0.5, 0.2]}
    found = create_method("unem_gaussian", layers=3, learned=values).refine(episodes)

    def positive(x):
        return np.log1p(np.exp(x))

    for e in range(3):
        s, z = (positive(0.3) * x[e].numpy() for x in (episodes.support, episodes.query))
        y, v = np.eye(5)[episodes.support_labels[e]], np.zeros(5)
        w = y.T @ s / y.sum(0)[:, None]
        for prior, temperature in zip(values["prior"], values["temperature"], strict=True):
            scores = -((z[:, None] - w[None]) ** 2).sum(-1) / 2 + positive(prior) * v
            scores /= 1 + positive(temperature)
            u = np.exp(scores - scores.max(1, keepdims=True))
            u /= u.sum(1, keepdims=True)
            v = np.log(u.mean(0) + 1e-6) + 1
            w = (u.T @ z + y.T @ s) / (u.sum(0) + y.sum(0))[:, None]
        np.testing.assert_allclose(found.logits[e].softmax(-1).numpy(), u, atol=1e-12)
        np.testing.assert_allclose(found.prototypes[e].numpy(), w, atol=1e-12)


def test_gradients_of_all_values():
    episodes = random_episodes(episodes=2, ways=3, shots=1, queries=6, dim=4)
    method = create_method("unem_gaussian", layers=3)
    names = [name for name, _ in method.named_parameters()]

    def run(*values):
        return torch.func.functional_call(method, dict(zip(names, values, strict=True)), (episodes,))

    assert names == ["scale", "prior", "temperature"]
    assert torch.autograd.gradcheck(run, [p.detach().clone().requires_grad_() for p in method.parameters()])


def test_starts_as_documented_and_shows_its_values():
    method = create_method("unem_gaussian", layers=2)
    assert method.learned == {"scale": 1.0, "prior": [1.0, 1.0], "temperature": [1.0, 1.0]}
    assert method_parameters("unem_gaussian") == {"layers": 10, "learned": None}
    values = {"scale": 0.25, "prior": [1.5, 2.0], "temperature": [-1.0, 0.0]}
    method.load_learned(values)
    assert method.learned == values
    assert create_method("unem_gaussian", layers=2, learned=values).learned == values
    weights, temperatures = method.schedule(torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(weights, softplus(torch.tensor([1.5, 2.0], dtype=torch.float64)))
    torch.testing.assert_close(temperatures, 1 + softplus(torch.tensor([-1.0, 0.0], dtype=torch.float64)))


def test_evaluation_builds_no_graph():
    assert not create_method("unem_gaussian")(random_episodes()).requires_grad


@pytest.mark.parametrize(("params", "message"), [
    ({"layers": 0}, "layers=0"),
    ({"learned": {"scale": 1.0}}, "expected exactly"),
    ({"layers": 3, "learned": {"scale": 1.0, "prior": [1.0], "temperature": [1.0]}}, "layers=3 needs"),
    ({"layer": 3}, "layers"),
])
def test_wrong_parameters(params, message):
    with pytest.raises(FewshotError, match=message):
        create_method("unem_gaussian", **params)
