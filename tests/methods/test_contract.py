"""What every registered method on features promises (`contract/checks.py`). A new method is covered by being registered."""

from __future__ import annotations

import functools

import pytest
import torch

from fewshot.contract.check_method import Candidate, candidate_of, check_promise, synthetic_base
from fewshot.contract.checks import PROMISES
from fewshot.contract.synthetic import random_episodes
from fewshot.methods import METHODS, IterativeMethod, create_method

# Cases that are no method of their own: a setting that gives a method weights, has it train on the support, or do more.
_TRAINED = {"trained": True, "steps": 3, "learning_rate": 0.02}
WITH_WEIGHTS = {"matching_net+full_context": {"full_context": True}, "tip_adapter+trained": _TRAINED,
                "ape+trained": _TRAINED, "proto_clip+trained": _TRAINED,
                "wise_ft+greedy": {"runs": 3, "dropout": 0.25, "soup": "greedy", "steps": 5}}
NAMES = [*(name for name in METHODS if METHODS[name].inputs == "features" and not METHODS[name].needs_validation),
         *WITH_WEIGHTS]
# Methods that read the features as maps or as crops: settings that suit the length D of the features here.
SHAPES = {"dn4": lambda dim: {"channels": dim // 4}, "relation_net": lambda dim: {"channels": dim // 16},
          "cosoc": lambda dim: {"crops": 2}}
DIM = 32
# Fewer steps of the same code for the methods that take seconds with their defaults: what is promised here does not
# depend on the number of steps. The defaults themselves are run under the slow marker.
DIRICHLET = {"iterations": 5, "mm_steps": 40}
QUICK = {"alpha_tim": {"iterations": 40}, "tim_gd": {"iterations": 40}, "putm": {"outer": 2, "inner": 2},
         "em_dirichlet": DIRICHLET, "hard_em_dirichlet": DIRICHLET, "unem_dirichlet": {"layers": 5, "mm_steps": 40},
         "lfa": {"steps": 3}, "lp_plus_plus": {"steps": 20},
         "amu": {"steps": 5}, "clip_adapter": {"steps": 5}, "cross_modal": {"steps": 5}, "prograd": {"steps": 5},
         "prolip": {"steps": 5}, "tes": {"steps": 20}, "wise_ft": {"steps": 5},
         "multi_modal_adapter": {"steps": 5}, "vdt": {"steps": 5},
         "free_lunch": {"samples": 12}, "estimator": {"estimator": "sklearn.svm.SVC"}}  # which takes a fifth of the time
DEFAULTS = "-defaults"
EXEMPT = {
    # Its weights are all it knows, and those of a fresh one are random; the others read features as scores of known classes,
    # which these are not: the texts here say nothing of half of the channels.
    "learns": ("relation_net", "conse", "loki"),
    "support_order": ("matching_net+full_context",),  # an LSTM reads the support in order; see the docstring of FullContext
    "chance": tuple(name + DEFAULTS for name in QUICK),  # 120 episodes take minutes
}


def cases(names: list[str]):
    slow = [pytest.param(name + DEFAULTS, marks=pytest.mark.slow) for name in names if name in QUICK]
    return pytest.mark.parametrize("name", [*names, *slow])


def registered(case: str) -> type:
    return METHODS[case.removesuffix(DEFAULTS).partition("+")[0]]


@functools.cache
def candidate(case: str, device: str = "cpu") -> Candidate:
    name = case.removesuffix(DEFAULTS)
    settings = WITH_WEIGHTS.get(name, QUICK.get(name, {}) if name == case else {})
    if name in SHAPES:
        settings = SHAPES[name](DIM)
    method = create_method(name.partition("+")[0], **settings)
    if method.needs_backbone:
        method = method.fit(synthetic_base(DIM)).with_backbone(torch.nn.Linear(1, 1), 5, feature_dim=DIM)
    return candidate_of(method, DIM, device)


PAIRS = [pytest.param(promise, name, marks=pytest.mark.slow if name.endswith(DEFAULTS) else ())
         for name in [*NAMES, *(name + DEFAULTS for name in NAMES if name in QUICK)]
         for promise in PROMISES if name not in EXEMPT.get(promise, ())]


@pytest.mark.parametrize(("promise", "name"), PAIRS)
def test_keeps_its_promises(promise, name, device):
    check_promise(candidate(name, device), promise)


@cases([name for name in NAMES if issubclass(registered(name), IterativeMethod)])
def test_the_space_of_the_prototypes_is_theirs(name):
    """On well separated clusters the mean of the points of its own class in `space` is the nearest to a prototype."""
    episodes, labels = random_episodes(shots=3, queries=20, dim=DIM, spread=0.02, with_labels=True,
                                       with_text=candidate(name).method.needs_text)
    with torch.no_grad():
        found = candidate(name).method.refine(episodes, history=True)
        assert candidate(name).method.refine(episodes).space is None
    if found.space is None:
        assert found.prototypes is None or "irichlet" in name, f"{name} has prototypes but gives no space"
        return
    assert torch.equal(found.space.support_labels, episodes.support_labels)
    points = torch.cat([found.space.support, found.space.query], 1)
    points, places = points.to(found.prototypes), torch.cat([episodes.support_labels, labels], 1)
    means = torch.stack([torch.stack([p[q == n].mean(0) for n in range(5)]) for p, q in zip(points, places, strict=True)])
    assert (torch.cdist(found.prototypes, means).argmin(2) == torch.arange(5)).all()
