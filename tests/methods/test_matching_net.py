from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods.matching_net import VARIANTS, FullContext, MatchingNet
from fewshot.methods.nearest_neighbour import NearestNeighbour
from tests.methods.agreement import check_soft
from tests.methods.metric_learning import fit_four_episodes

CLOSER_LOOK = {"variant": "closer_look", "scale": 100.0, "relu": True}
AGREEMENT = [("matching_net", {"scale": 1.0}, "matchingnet_cosine_plain"),
             ("matching_net", CLOSER_LOOK, "matchingnet_cosine_x100"),
             ("matching_net", {"variant": "class_mean", "scale": 100.0, "relu": True}, "matchingnet_classmean"),
             ("matching_net", {"full_context": True, **CLOSER_LOOK}, "full_context")]
FEW = ("caltech_5w1s_balanced", "caltech28px_5w5s_dirichlet")


@pytest.mark.parametrize("case", AGREEMENT, ids=lambda case: case[2])
def test_agrees_with_official_code(oracles, case):
    """Full-context embeddings on two of the inputs."""
    check_soft(oracles, *case, only=FEW if "full_context" in case[1] else ())


@pytest.mark.slow
def test_full_context_agrees_with_official_code_on_all_inputs(oracles):
    check_soft(oracles, *AGREEMENT[3])


@pytest.mark.parametrize("relu", [False, True])
def test_against_a_loop(relu):
    """Unequal shots and signed features: every support point has the same say."""
    full = random_episodes(shots=3).with_features(lambda x: x - 0.5)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 7, 10, 12])
    support, labels = full.support[:, kept], full.support_labels[:, kept]
    episodes = type(full)(support=support, support_labels=labels, query=full.query, ways=5)
    probabilities = MatchingNet(scale=7.0, relu=relu)(episodes).exp()
    for e in range(3):
        for q, z in enumerate(full.query[e]):
            cosines = torch.stack([z @ s / (z.norm() * s.norm()) for s in support[e]])
            attention = (7 * (cosines.relu() if relu else cosines)).softmax(0)
            expected = torch.stack([attention[labels[e] == n].sum() for n in range(5)])
            torch.testing.assert_close(probabilities[e, q], expected, atol=1e-12, rtol=0)


def test_logits_are_log_probabilities():
    logits = MatchingNet()(random_episodes(shots=4))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 15, dtype=torch.float64))


def test_large_scale_is_the_nearest_neighbour():
    """In float32 too, where the attention of the far classes is below the smallest number."""
    episodes = random_episodes(shots=3, dtype=torch.float32)
    logits = MatchingNet(scale=1e4)(episodes)
    assert torch.isfinite(logits).all() and (logits < -200).any()
    assert torch.equal(logits.argmax(-1), NearestNeighbour("cosine")(episodes).argmax(-1))


def test_small_scale_counts_shots():
    full = random_episodes(shots=2)
    episodes = type(full)(support=full.support[:, :6], support_labels=full.support_labels[:, :6], query=full.query,
                          ways=5)
    expected = torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64).div(6).expand(3, 15, 5)
    torch.testing.assert_close(MatchingNet(scale=1e-9)(episodes).exp(), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant):
    episodes = random_episodes(episodes=1, ways=3, shots=2, queries=3, dim=4).with_features(lambda x: x + 0.1)

    def logits(support, query):
        return MatchingNet(variant=variant)(type(episodes)(support=support, support_labels=episodes.support_labels,
                                                           query=query, ways=3))

    torch.autograd.gradcheck(logits, (episodes.support.requires_grad_(), episodes.query.requires_grad_()))


def test_wrong_values():
    with pytest.raises(FewshotError, match="choose one of attention, closer_look, class_mean"):
        MatchingNet(variant="full")
    with pytest.raises(FewshotError, match="scale=0"):
        MatchingNet(scale=0)
    with pytest.raises(FewshotError, match="steps=0"):
        MatchingNet(full_context=True, steps=0)
    with pytest.raises(FewshotError, match="steps=3 without full_context"):
        MatchingNet(steps=3)
    with pytest.raises(FewshotError, match="no network yet; call .with_backbone"):
        MatchingNet(full_context=True)(random_episodes())
    with pytest.raises(FewshotError, match="feature_dim="):
        MatchingNet(full_context=True).with_backbone(torch.nn.Linear(1, 1), 5)


def full_context(dim: int = 8, **settings) -> FullContext:
    backbone = torch.nn.Linear(1, 1, dtype=torch.float64)
    return MatchingNet(full_context=True, **settings).with_backbone(backbone, 5, feature_dim=dim, seed=4)


def lstm_step(x, h, c, weights):
    """Hochreiter and Schmidhuber's cell with a forget gate, in PyTorch's order of the gates."""
    of_input, of_state, input_bias, state_bias = weights
    i, f, g, o = (of_input @ x + input_bias + of_state @ h + state_bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_full_context_against_a_loop(steps):
    """One item, one query, one step at a time; unequal shots, given in any order."""
    full = random_episodes(shots=3, dim=8, queries=4)
    kept = torch.tensor([12, 0, 1, 7, 5, 2, 3, 4, 10])  # of the classes 2, 0, 1, 2, 0, 2, 3, 4, 0
    episodes = Episodes(full.support[:, kept], full.support_labels[:, kept], full.query, 5)
    made = full_context(steps=steps)
    forwards, backwards = ([getattr(made.support_lstm, f"{kind}_l0{end}") for kind in
                            ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] for end in ("", "_reverse"))
    cell = [made.query_cell.weight_ih, made.query_cell.weight_hh, made.query_cell.bias_ih, made.query_cell.bias_hh]
    zero = torch.zeros(8, dtype=torch.float64)
    with torch.no_grad():
        found = made(episodes)
        for e in range(3):
            s, labels = episodes.support[e][[0, 3, 5, 1, 4, 8, 2, 6, 7]], [2, 2, 2, 0, 0, 0, 1, 3, 4]
            context = [torch.zeros(2, 8, dtype=torch.float64) for _ in s]
            for direction, order, weights in ((0, range(9), forwards), (1, range(8, -1, -1), backwards)):
                h, c = zero, zero
                for i in order:
                    h, c = lstm_step(s[i], h, c, weights)
                    context[i][direction] = h
            g = torch.stack([x + both.sum(0) for x, both in zip(s, context, strict=True)])
            for q, f in enumerate(episodes.query[e]):
                h, c = f, zero
                for _ in range(steps or 9):
                    read = (g @ h).softmax(0) @ g
                    h, c = lstm_step(torch.cat([f, read]), h, c, cell)
                    h = h + f
                attention = (10 * (g @ h) / g.norm(dim=1) / h.norm()).softmax(0)
                expected = torch.zeros(5, dtype=torch.float64).index_add(0, torch.tensor(labels), attention)
                torch.testing.assert_close(found[e, q].exp(), expected, atol=1e-12, rtol=0)


def test_full_context_reads_class_by_class():
    """Classes may be given shot by shot or one after the other, under any numbers; the order of a class's items counts, and
    so does the order of the classes."""
    episodes = random_episodes(shots=3, dim=8)  # shot by shot
    made = full_context()

    def answer(order):
        order = torch.tensor(order)
        return made(Episodes(episodes.support[:, order], episodes.support_labels[:, order], episodes.query, 5))

    with torch.no_grad():
        whole = answer(range(15))
        by_class = [5 * shot + n for n in range(5) for shot in range(3)]
        assert torch.equal(answer(by_class), whole)
        assert (answer([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 11, 12, 13, 14]) - whole).abs().max() > 1e-6
        assert (answer([1, 0, 2, 3, 4, *range(5, 15)]) - whole).abs().max() > 1e-6


def test_full_context_is_off_by_default():
    method = MatchingNet()
    assert method.with_backbone(torch.nn.Linear(1, 1), 5) is method and not method.needs_backbone


def test_full_context_gradients():
    episodes = random_episodes(episodes=1, ways=2, shots=2, queries=2, dim=3).with_features(lambda x: x + 0.1)
    made = full_context(dim=3)
    names = [name for name, _ in made.named_parameters()]

    def logits(support, query, *weights):
        return torch.func.functional_call(made, dict(zip(names, weights, strict=True)),
                                          Episodes(support, episodes.support_labels, query, 2))

    inputs = [x.detach().clone().requires_grad_() for x in (episodes.support, episodes.query, *made.parameters())]
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True)


@pytest.mark.parametrize("settings", [{}, {"full_context": True, "steps": 2}])
def test_four_episodes_are_fitted(settings):
    losses, right = fit_four_episodes(MatchingNet(**settings), shots=2, pools=4)
    assert losses[0] > 0.2 and losses[-1] < 0.02 and right
