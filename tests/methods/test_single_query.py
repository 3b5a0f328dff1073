"""A single query: nothing can be learned from the other ones, and its own mean is itself."""

from __future__ import annotations

import warnings

import pytest
import torch

from fewshot import Episodes, create_method
from fewshot.contract.synthetic import random_episodes
from fewshot.features.transforms import parse_transforms

CENTRED = {"pt_map": [{}, {"variant": "official"}, {"query_prior": (1, 1, 1, 1, 1)}], "hct_adapt": [{}],
           "bd_cspn": [{"norm": "l2n"}, {"norm": "un", "variant": "code"}], "laplacian_shot": [{"norm": "l2n"}],
           "kmeans": [{"norm": "l2n"}], "slk_means": [{"norm": "l2n"}], "slk_ms": [{"norm": "l2n"}],
           "opta": [{}, {"variant": "official"}, {"query_prior": "unknown"}]}


def separated(queries=1):
    """50 episodes of classes far apart, in random directions, the first query of class 0."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(50, 5, 16, generator=generator)
    support = centres + torch.randn(50, 5, 16, generator=generator) / 4
    query = centres[:, :queries] + torch.randn(50, queries, 16, generator=generator) / 4
    return Episodes(support, torch.arange(5).expand(50, 5), query, 5)


@pytest.mark.parametrize(("name", "parameters"), [(name, each) for name in CENTRED for each in CENTRED[name]])
def test_it_is_answered_by_the_prototypes_and_a_warning_says_so_once(name, parameters):
    with pytest.warns(UserWarning, match="1 query may be too few for a transductive answer.*here 25") as found:
        logits = create_method(name, **parameters)(separated())
    assert len(found) == 1 and (logits.argmax(-1) == 0).all()


def test_it_is_centred_by_the_mean_of_the_support():
    episodes = separated()
    centred = parse_transforms("center_separate")(episodes)
    assert torch.equal(centred.query, episodes.query - episodes.support.mean(1, keepdim=True))


@pytest.mark.parametrize("method", [create_method("protonet"), create_method("ridge")], ids=["protonet", "ridge"])
def test_an_inductive_method_says_nothing(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(separated())
        create_method("pt_map")(random_episodes(queries=2))
