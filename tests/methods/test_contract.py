"""What every registered method on features promises. A new method is covered by being registered."""

from __future__ import annotations

import functools

import pytest
import torch

from fewshot.banks import FeatureBank
from fewshot.episodes import Episodes
from fewshot.methods import METHODS, IterativeMethod, create_method
from tests.conftest import random_episodes

# Cases that are no method of their own: a setting that gives a method weights.
WITH_WEIGHTS = {"matching_net+full_context": {"full_context": True}}
NAMES = [*(name for name in METHODS if METHODS[name].inputs == "features"), *WITH_WEIGHTS]
# Methods that read the features as maps or as crops: settings that suit the length D of the features here.
SHAPES = {"dn4": lambda dim: {"channels": dim // 4}, "relation_net": lambda dim: {"channels": dim // 16},
          "cosoc": lambda dim: {"crops": 2}}
# The weights of a relation module are all it knows, and those of a fresh one are random.
NEEDS_TRAINING = ("relation_net",)
# An LSTM reads the support one item after the other; see the docstring of FullContext.
READS_IN_ORDER = ("matching_net+full_context",)
# Fewer steps of the same code for the methods that take seconds with their defaults: what is promised here does not
# depend on the number of steps. The defaults themselves are run under the slow marker.
DIRICHLET = {"iterations": 5, "mm_steps": 40}
QUICK = {"alpha_tim": {"iterations": 100}, "tim_gd": {"iterations": 100}, "putm": {"outer": 4, "inner": 6},
         "em_dirichlet": DIRICHLET, "hard_em_dirichlet": DIRICHLET, "unem_dirichlet": {"layers": 5, "mm_steps": 40},
         "free_lunch": {"samples": 60}}
DEFAULTS = "-defaults"


def cases(names: list[str]):
    slow = [pytest.param(name + DEFAULTS, marks=pytest.mark.slow) for name in names if name in QUICK]
    return pytest.mark.parametrize("name", [*names, *slow])


every_method = cases(NAMES)


def registered(case: str) -> type:
    return METHODS[case.partition("+")[0]]


@functools.cache
def base_bank(dim: int = 16) -> FeatureBank:
    features = torch.randn(400, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64).relu()
    return FeatureBank(features, torch.arange(400) % 20)


def ready(case: str, dim: int = 16, dtype: torch.dtype = torch.float64):
    name = case.removesuffix(DEFAULTS)
    settings = WITH_WEIGHTS.get(name, QUICK.get(name, {}) if name == case else {})
    if name in SHAPES:
        settings = SHAPES[name](dim)
    method = create_method(name.partition("+")[0], **settings).fit(base_bank(dim))
    if method.needs_backbone:
        return method.with_backbone(torch.nn.Linear(1, 1, dtype=dtype), 5, feature_dim=dim)
    return method


def probabilities(name: str, episodes: Episodes) -> torch.Tensor:
    with torch.no_grad():
        logits = ready(name, episodes.support.shape[-1], episodes.support.dtype)(episodes)
    assert torch.isfinite(logits).all(), f"{name}: logits are not finite"
    return logits.softmax(-1)


def replace(episodes: Episodes, **changes) -> Episodes:
    fields = {"support": episodes.support, "support_labels": episodes.support_labels, "query": episodes.query,
              "ways": episodes.ways}
    return Episodes(**{**fields, **changes})


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(name, dtype):
    episodes = random_episodes(dtype=dtype)
    logits = ready(name, dtype=dtype)(episodes)
    assert logits.shape == (3, 15, 5) and logits.dtype == dtype


@every_method
def test_inputs_are_not_modified(name):
    episodes = random_episodes()
    before = episodes.support.clone(), episodes.query.clone(), episodes.support_labels.clone()
    ready(name)(episodes)
    after = episodes.support, episodes.query, episodes.support_labels
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@cases([name for name in NAMES if name not in NEEDS_TRAINING])
def test_learns_from_the_support(name):
    """On well separated clusters every method is nearly always right."""
    episodes, labels = random_episodes(episodes=6, shots=5, queries=25, dim=32, spread=0.15, with_labels=True)
    accuracy = (probabilities(name, episodes).argmax(-1) == labels).double().mean()
    assert accuracy > 0.95


@every_method
def test_class_relabelling(name):
    episodes = random_episodes(shots=3, queries=20)
    renamed = torch.tensor([3, 0, 4, 1, 2])
    other = replace(episodes, support_labels=renamed[episodes.support_labels])
    torch.testing.assert_close(probabilities(name, other)[..., renamed], probabilities(name, episodes), atol=1e-6, rtol=0)


@every_method
def test_query_order(name):
    episodes = random_episodes(shots=3, queries=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    other = replace(episodes, query=episodes.query[:, order])
    torch.testing.assert_close(probabilities(name, other), probabilities(name, episodes)[:, order], atol=1e-6, rtol=0)


@cases([name for name in NAMES if name not in READS_IN_ORDER])
def test_support_order(name):
    episodes = random_episodes(shots=3, queries=20)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    other = replace(episodes, support=episodes.support[:, order], support_labels=episodes.support_labels[:, order])
    torch.testing.assert_close(probabilities(name, other), probabilities(name, episodes), atol=1e-6, rtol=0)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_invariance(name, dtype):
    """An episode's answer does not depend on its batch mates, easy or hard."""
    hard, easy = random_episodes(episodes=4, spread=1.5, seed=3, dtype=dtype), random_episodes(episodes=4, spread=0.1,
                                                                                               seed=4, dtype=dtype)
    both = replace(hard, support=torch.cat([hard.support, easy.support]), query=torch.cat([hard.query, easy.query]),
                   support_labels=torch.cat([hard.support_labels, easy.support_labels]))
    alone = torch.cat([probabilities(name, both[i]) for i in range(8)])
    torch.testing.assert_close(probabilities(name, both), alone, atol=1e-5, rtol=0)


@cases([name for name in NAMES if registered(name).setting == "inductive"])
def test_inductive_methods_see_one_query_at_a_time(name):
    episodes = random_episodes()
    changed = episodes.query.clone()
    changed[:, 1:] = changed[:, 1:].flip(1) * 2 + 1
    before, after = probabilities(name, episodes)[:, 0], probabilities(name, replace(episodes, query=changed))[:, 0]
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


@cases([name for name in NAMES if registered(name).setting == "transductive"])
def test_transductive_methods_use_the_other_queries(name):
    """Otherwise the declared setting, which tables print, would be wrong."""
    episodes = random_episodes(spread=1.5)
    changed = episodes.query.clone()
    changed[:, 1:] = random_episodes(spread=1.5, seed=8).query[:, 1:]
    before, after = probabilities(name, episodes)[:, 0], probabilities(name, replace(episodes, query=changed))[:, 0]
    assert (before - after).abs().max() > 1e-6


@every_method
def test_unequal_shots(name):
    """Shots 1, 2, 3, 4, 5: labels are counted, never reshaped."""
    full = random_episodes(shots=5, queries=10)
    kept = torch.tensor([i for i in range(25) if i // 5 <= int(full.support_labels[0, i])])
    episodes = replace(full, support=full.support[:, kept], support_labels=full.support_labels[:, kept])
    assert probabilities(name, episodes).shape == (3, 10, 5)


@every_method
@pytest.mark.parametrize("queries", [1, 7])
def test_few_queries(name, queries):
    assert probabilities(name, random_episodes(queries=queries)).shape == (3, queries, 5)


@every_method
def test_a_class_without_queries(name):
    episodes, labels = random_episodes(queries=20, spread=0.1, with_labels=True)
    kept = torch.stack([(row > 0).nonzero()[:16, 0] for row in labels])
    episodes = replace(episodes, query=episodes.query.gather(1, kept.unsqueeze(-1).expand(-1, -1, 16)))
    assert probabilities(name, episodes).shape == (3, 16, 5)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicated_points(name, dtype):
    episodes = random_episodes(dtype=dtype)
    probabilities(name, replace(episodes, query=episodes.query[:, :1].expand(-1, 15, -1).contiguous()))
    probabilities(name, replace(episodes, query=episodes.support.repeat(1, 2, 1)))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_zero_features(name, dtype):
    episodes = random_episodes(dtype=dtype)
    query = episodes.query.clone()
    query[:, 3] = 0
    probabilities(name, replace(episodes, query=query))
    probabilities(name, replace(episodes, query=torch.zeros_like(query), support=torch.zeros_like(episodes.support)))


@every_method
def test_signed_features(name):
    episodes = random_episodes()
    probabilities(name, episodes.with_features(lambda x: x - 0.7))


@every_method
@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 50), (100, 1)])
def test_ways_and_shots(name, ways, shots):
    assert probabilities(name, random_episodes(episodes=1, ways=ways, shots=shots, queries=20)).shape == (1, 20, ways)


@every_method
def test_float32_is_close_to_float64(name):
    """Probabilities may differ where an iteration amplifies rounding; predictions may not, except at ties."""
    episodes = random_episodes(episodes=4, shots=3, queries=25, dim=32, spread=0.7)
    exact, single = probabilities(name, episodes), probabilities(name, episodes.to(torch.float32)).double()
    top = exact.topk(2, -1).values
    clear = (top[..., 0] - top[..., 1]) > 1e-2
    assert torch.equal(exact.argmax(-1)[clear], single.argmax(-1)[clear])
    assert (exact - single).abs().max() < 5e-3


@every_method
def test_deterministic(name):
    episodes = random_episodes(dtype=torch.float32)
    assert torch.equal(probabilities(name, episodes), probabilities(name, episodes))


@every_method
def test_threads_do_not_matter(name):
    episodes = random_episodes(episodes=4, queries=25, dim=64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = probabilities(name, episodes)
        torch.set_num_threads(2)
        two = probabilities(name, episodes)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@cases([name for name in NAMES if issubclass(registered(name), IterativeMethod)])
def test_refinement_reports_every_episode(name):
    episodes = random_episodes()
    with torch.no_grad():
        refinement = ready(name).refine(episodes, history=True)
        again = ready(name)(episodes)
    assert refinement.iterations.shape == (3,) and refinement.iterations.dtype == torch.int64
    assert (refinement.iterations >= 0).all() and refinement.converged.shape == (3,)
    assert refinement.converged.dtype == torch.bool
    torch.testing.assert_close(refinement.logits, again)
    if refinement.prototypes is not None:
        assert refinement.prototypes.shape[:2] == (3, 5)
        assert refinement.history, f"{name} has prototypes but kept no history"


@cases([name for name in NAMES if issubclass(registered(name), IterativeMethod)])
def test_the_space_of_the_prototypes_is_theirs(name):
    """On well separated clusters the mean of the points of its own class in `space` is the nearest to a prototype."""
    episodes, labels = random_episodes(shots=3, queries=20, spread=0.02, with_labels=True)
    with torch.no_grad():
        found = ready(name).refine(episodes, history=True)
        assert ready(name).refine(episodes).space is None
    if found.space is None:
        assert found.prototypes is None or "irichlet" in name, f"{name} has prototypes but gives no space"
        return
    assert torch.equal(found.space.support_labels, episodes.support_labels)
    points = torch.cat([found.space.support, found.space.query], 1)
    points, places = points.to(found.prototypes), torch.cat([episodes.support_labels, labels], 1)
    means = torch.stack([torch.stack([p[q == n].mean(0) for n in range(5)]) for p, q in zip(points, places, strict=True)])
    assert (torch.cdist(found.prototypes, means).argmin(2) == torch.arange(5)).all()


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself(name):
    method = ready(name)  # an instance: what a method assumes may depend on its hyper-parameters
    assert method.setting in ("inductive", "transductive") and method.source and type(method).__doc__
    assert isinstance(method.assumes, tuple) and all(isinstance(text, str) for text in method.assumes)
