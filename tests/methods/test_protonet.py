from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.methods.protonet import ProtoNet
from tests.methods.agreement import check_labels
from tests.oracle import inputs_of, load_inputs, load_outputs

AGREEMENT = [("protonet", {}, "easyfsl_protonet"), ("protonet", {}, "simpleshot_un")]


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_labels_agree_with_official_code(oracles, case):
    check_labels(oracles, *case)


@pytest.mark.parametrize(("official", "array", "sign"), [("easyfsl_protonet", "logits", -1),
                                                         ("simpleshot_un", "distances", 1)])
def test_distances_agree_with_official_code(oracles, official, array, sign):
    """Both report distances that are not squared; ours are, as in the paper."""
    for inputs in inputs_of(oracles, official):
        outputs, description = load_outputs(oracles, official, inputs)
        exact = sign * outputs[f"{array}_f64"]
        episodes, _ = load_inputs(oracles, inputs)
        distances = (-ProtoNet()(episodes)).sqrt().numpy()
        tolerance = description["expected_agreement"]["float64"]
        np.testing.assert_allclose(distances[:len(exact)], exact, atol=tolerance, rtol=0)
        single = (-ProtoNet()(episodes.to(torch.float32))).sqrt().numpy()
        about = description["per_input"][inputs]
        # Where none is stated, the rule by which the others were made: 20 times what float32 costs the official code.
        tolerance = about["tolerance_float32"] or max(1e-5, 20 * about["max_abs_distance_diff_float32_vs_float64"])
        np.testing.assert_allclose(single[:len(exact)], exact, atol=tolerance, rtol=0)


def test_against_a_loop_with_unequal_shots():
    full = random_episodes(shots=4)
    kept = torch.tensor([i for i in range(20) if i // 5 <= int(full.support_labels[0, i])])
    support, labels = full.support[:, kept], full.support_labels[:, kept]
    logits = ProtoNet(temperature=2)(type(full)(support=support, support_labels=labels, query=full.query, ways=5))
    for e in range(3):
        for n in range(5):
            mean = support[e][labels[e] == n].mean(0)
            expected = -((full.query[e] - mean) ** 2).sum(-1) / 2
            torch.testing.assert_close(logits[e, :, n], expected, atol=1e-12, rtol=0)


def test_precise_far_from_the_origin():
    """Squared norms of 1e7 must not swallow distances of order 1."""
    episodes = random_episodes(episodes=2, dim=8)
    exact = ProtoNet()(episodes)
    moved = ProtoNet()(episodes.with_features(lambda x: x + 1000).to(torch.float32))
    torch.testing.assert_close(moved.double(), exact, atol=1e-2, rtol=0)


def test_gradients():
    episodes = random_episodes(episodes=1, ways=3, queries=3, dim=4)

    def logits(support, query):
        return ProtoNet()(type(episodes)(support=support, support_labels=episodes.support_labels, query=query, ways=3))

    torch.autograd.gradcheck(logits, (episodes.support.requires_grad_(), episodes.query.requires_grad_()))


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(FewshotError, match="must be positive"):
        ProtoNet(temperature=temperature)
