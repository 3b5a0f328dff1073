"""Methods of easyfsl, scikit-learn and POT at equal settings, beside this project's; a section of benchmarks/suite.py."""

from __future__ import annotations

import numpy as np
import torch
from common import Contender, call_text, clusters, easyfsl_method, index_chunks, installed
from torch import nn
from transductive import PAIRS

from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.ops.distances import l2_normalise, squared_euclidean
from fewshot.ops.linear import fit_logistic
from fewshot.ops.prototypes import prototypes
from fewshot.ops.transport import entropic_plan


def peers(quick: bool) -> list[dict]:
    """[{theirs, ours, protocol, rates of both, agreement}]"""
    found, bank, base = [], clusters(0), clusters(1)
    for protocol, shots in (("5w1s", 1), ("5w5s", 5)):
        # Two chunks again and again: in an evaluation, too, they have just been gathered and are in the cache.
        chunks = 8 * [chunk.gather(bank) for chunk in index_chunks(bank, 5, shots, 256)[:2]]
        pairs = []
        for theirs, their_settings, ours, settings in PAIRS if installed("easyfsl") else ():
            left = Contender(f"easyfsl {call_text(theirs, their_settings)}", easyfsl_method(theirs, their_settings), chunks,
                             0.1)
            right = Contender(call_text(ours, settings), create_method(ours, **settings).fit(base), chunks, 0.1)
            pairs.append((left, right, same_labels(left, right, chunks[0])))
        if installed("scikit-learn"):
            pairs.append(sklearn_pair(chunks))
        if installed("POT"):
            pairs.append(pot_pair(chunks))
        for _ in range(2 if quick else 5):
            for contender in (one for pair in pairs for one in pair[:2]):
                contender.run()
        for left, right, agreement in pairs:
            found.append({"theirs": left.label, "ours": right.label, "protocol": protocol, "their rates": left.rates,
                          "our rates": right.rates, "agreement": agreement})
    return found


def same_labels(left: Contender, right: Contender, chunk: Episodes) -> str:
    with torch.no_grad():
        same = left.answer(chunk[:8]).argmax(-1) == right.answer(chunk[:8]).argmax(-1)
    return f"{100 * float(same.double().mean()):.0f} % same labels"


def sklearn_pair(chunks: list) -> tuple[Contender, Contender, str]:
    """Logistic regression fitted to the support and applied to the queries, to the same value of the objective."""
    from sklearn.linear_model import LogisticRegression

    # scikit-learn's default tolerance of 1e-4 leaves the objective up to 1e-4 above its minimum.
    settings = {"C": 1.0, "tol": 1e-5, "max_iter": 1000}

    def fit(x, labels, query):
        model = LogisticRegression(**settings).fit(x, labels)
        return model.coef_, model.intercept_, model.decision_function(query)

    def theirs(episodes: Episodes) -> list:
        arrays = l2_normalise(episodes.support), episodes.support_labels, l2_normalise(episodes.query)
        return [fit(*one) for one in zip(*(part.numpy() for part in arrays), strict=True)]

    def objective(x, labels, weights, intercept) -> torch.Tensor:
        logits = x.double() @ weights.double().transpose(-1, -2) + intercept.double().unsqueeze(-2)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
        return loss.sum(-1) + weights.double().square().sum((-1, -2)) / 2

    some = chunks[0][:8]
    support, labels = l2_normalise(some.support), some.support_labels
    found = [torch.as_tensor(np.stack(part)) for part in list(zip(*theirs(some), strict=True))[:2]]
    ours = fit_logistic(support, labels, some.ways, 1.0)
    best, reached = objective(support, labels, ours.weights, ours.intercept), objective(support, labels, *found)
    return (Contender(f"scikit-learn {call_text('LogisticRegression', settings)}", theirs, chunks, 0.1),
            Contender("logistic_regression(C=1.0)", create_method("logistic_regression", C=1.0), chunks, 0.1),
            f"objective {float(((best - reached).abs() / best).max()):.0e} apart")


def pot_pair(chunks: list) -> tuple[Contender, Contender, str]:
    """The transport plans of PT-MAP's first assignment, to a marginal error of 1e-9."""
    import ot

    def cost(episodes: Episodes) -> torch.Tensor:
        return squared_euclidean(l2_normalise(episodes.query), l2_normalise(prototypes(episodes))).double()

    def theirs(episodes: Episodes) -> torch.Tensor:
        rows, cols = np.ones(episodes.query.shape[1]), np.full(episodes.ways, episodes.query.shape[1] / episodes.ways)
        return torch.stack([torch.as_tensor(ot.sinkhorn(rows, cols, one, 0.1, method="sinkhorn_log", stopThr=1e-9,
                                                        numItermax=10_000)) for one in cost(episodes).numpy()])

    def ours(episodes: Episodes) -> torch.Tensor:
        costs = cost(episodes)
        count = costs.shape[1] / episodes.ways
        return entropic_plan(costs, costs.new_ones(costs.shape[:2]), costs.new_full((len(costs), episodes.ways), count), 0.1,
                             tolerance=1e-9 / costs.shape[1]).plan

    apart = float((theirs(chunks[0][:8]) - ours(chunks[0][:8])).abs().max())
    return (Contender("POT sinkhorn(method=sinkhorn_log, stopThr=1e-9)", theirs, chunks, 0.1),
            Contender("entropic_plan(tolerance=1e-9)", ours, chunks, 0.1), f"plans {apart:.0e} apart")
