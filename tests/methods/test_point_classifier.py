"""Methods written out as arithmetic on one point answer as they do themselves."""

from __future__ import annotations

import pytest
import torch

from fewshot.contract.synthetic import noise_bank, random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import METHODS, create_method
from fewshot.methods.contract import Method

NORMS = [{"norm": norm} for norm in ("un", "l2n", "cl2n")]
CASES = [("protonet", {}), ("protonet", {"temperature": 0.1}),
         *(("simple_shot", {**norm, "metric": metric, "scale": 3}) for norm in NORMS for metric in ("euclidean", "cosine")),
         *(("ridge", {**norm, "intercept": intercept}) for norm in NORMS for intercept in (True, False)),
         *(("logistic_regression", norm) for norm in NORMS),
         ("linear_probe_clip", {}), ("nearest_neighbour", {}), ("nearest_neighbour", {"metric": "cosine"})]


def unequal(dtype, far):
    """An episode whose classes have unequal shots and do not stand in their order, with all features moved by `far`."""
    e = random_episodes(episodes=1, shots=3, dtype=dtype)
    return Episodes(e.support[:, :-2] + far, e.support_labels[:, :-2], e.query + far, e.ways)


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_the_probabilities_are_those_of_the_method(name, parameters):
    method = create_method(name, **parameters)
    method = method.fit(noise_bank(16)) if method.needs_base else method
    for far in (0.0, 30.0):  # from the origin, where expanded distances would lose digits
        for dtype, limit in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
            episodes = unequal(dtype, far)
            made = method.point_classifier(episodes)
            found, wanted = made(episodes.query[0]).softmax(-1), method(episodes)[0].softmax(-1)
            assert found.shape == wanted.shape == (15, 5) and (far or wanted.amax(1).mean() > 0.25)
            assert (found - wanted).abs().max() < limit


def test_every_method_that_offers_it_is_examined():
    offering = {name for name in METHODS if METHODS[name].point_classifier is not Method.point_classifier}
    assert offering == {name for name, _ in CASES}


def test_other_methods_name_those_that_can():
    with pytest.raises(FewshotError, match="PTMAP does not reduce to a classifier .* logistic_regression, "
                                           "nearest_neighbour, protonet, ridge, simple_shot"):
        create_method("pt_map").point_classifier(random_episodes(episodes=1))
