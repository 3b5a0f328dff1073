"""Making methods: names, values and inputs are checked before any arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.evaluation.run import Run
from fewshot.methods import METHODS, create_method, method_parameters

IMAGES = Episodes(support=torch.zeros(1, 2, 3, 8, 8), support_labels=torch.tensor([[0, 1]]),
                  query=torch.zeros(1, 2, 3, 8, 8), ways=2)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_refuses_what_it_is_not(name):
    create_method(name, **method_parameters(name))
    for key in method_parameters(name):
        with pytest.raises(FewshotError, match=f"{key}=.* of {name}; expected"):
            create_method(name, **{key: object()})


@pytest.mark.parametrize(("method", "parameters", "message"), [
    ("protonet", {"temperature": "1"}, "expected a number"), ("protonet", {"temperature": True}, "expected a number"),
    ("kmeans", {"max_iterations": 2.0}, "expected an integer"), ("kmeans", {"clamp_support": 1}, "expected True or False"),
    ("tim_gd", {"iterations": -1}, "at least 0"), ("putm", {"inner": 0}, "at least 1"),
    ("opta", {"reg": 0.0}, "positive"), ("pt_map", {"scale": float("nan")}, "positive"),
    ("laplacian_shot", {"norm": "l3"}, "choose one of"), ("slk_ms", {"neighbours": 0}, "at least 1"),
])
def test_wrong_values(method, parameters, message):
    with pytest.raises(FewshotError, match=message):
        create_method(method, **parameters)
    with pytest.raises(FewshotError, match=message):
        Run(method=method, parameters=parameters)


def test_numpy_numbers_and_json_lists_will_do():
    assert Run(parameters={"temperature": np.float32(2)}, ways=np.int64(5)).key == Run(parameters={"temperature": 2.0}).key
    create_method("pt_map", query_prior=[0.5, 0.5])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].inputs == "features"])
def test_images_are_refused_by_methods_on_features(name):
    with pytest.raises(FewshotError, match="embed the images first"):
        create_method(name)(IMAGES)


@pytest.mark.parametrize(("name", "params", "expected"), [
    ("pt_map", {}, ("balanced queries",)),
    ("pt_map", {"query_prior": "unknown"}, ()),
    ("opta", {"query_prior": (0.5, 0.5)}, ("known class frequencies of the queries",)),
    ("putm", {"query_prior": "unknown"}, ()),
    ("laplacian_shot", {}, ("balanced queries",)),
    ("laplacian_shot", {"rectify": False}, ()),
    ("tim_gd", {"marginal": 0.0}, ()),
    ("tim_adm", {}, ("balanced queries",)),
    ("alpha_tim", {}, ()),
    ("alpha_tim", {"alpha": 1.0}, ("balanced queries",)),
    ("em_dirichlet", {}, ()),
    ("hard_em_dirichlet", {"k_eff": 5}, ("known K_eff",)),
    ("paddle", {"prior_weight": 0.0}, ()),
])
def test_assumptions_follow_the_hyper_parameters(name, params, expected):
    assert create_method(name, **params).assumes == expected
