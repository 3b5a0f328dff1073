"""A search of a grid answers as a loop over its settings, and `tune` as one evaluation after the other."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.data.class_texts import ClassTexts
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.methods import create_method
from fewshot.methods.bases import grid_search as grid_module
from fewshot.methods.bases.grid import GridMethod
from fewshot.methods.bases.grid_search import search_grid
from fewshot.tuning.search import tune

ALPHA, BETA, GAMMA = [0.1, 0.7, 1.3, 4.0], [0.0, 0.5, 1.0, 6.0], [0.0, 0.4, 1.0, 2.5, 9.0]
SEARCHES = [("tip_adapter", {}, {"beta": BETA, "alpha": ALPHA}),
            ("tip_x", {}, {"alpha": ALPHA, "beta": BETA, "gamma": GAMMA}),
            ("tip_x", {"variant": "official"}, {"gamma": GAMMA[:2], "beta": BETA, "alpha": ALPHA}),
            ("tip_x", {}, {"gamma": GAMMA}),
            ("ape", {}, {"beta": BETA, "alpha": ALPHA, "gamma": GAMMA}),
            ("ape", {}, {"channels": [4, 20], "alpha": ALPHA, "beta": BETA[:2]}),  # the affinity depends on channels
            ("tip_adapter", {"trained": True, "steps": 2, "learning_rate": 0.1}, {"beta": BETA[1:3], "alpha": ALPHA[:2]}),
            ("tip_adapter", {"trained": True, "steps": 2, "train_alpha": 1.0, "train_beta": 1.0}, {"beta": BETA}),
            ("protonet", {}, {"temperature": [0.5, 1.0]})]


def hard_episodes(dtype=torch.float64, **settings):
    """(episodes, labels) of which about half are answered right."""
    given = {"episodes": 2, "shots": 3, "queries": 110, "dim": 32, "spread": 2.5, "with_text": True, **settings}
    episodes, labels = random_episodes(with_labels=True, dtype=dtype, **given)
    return episodes.replace(logit_scale=7.0), labels


def one_by_one(name, fixed, grid, episodes, labels):
    """(values, right answers) of every setting, by the method alone."""
    found = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        logits = create_method(name, **{**fixed, **setting})(episodes)
        found.append((setting, int((logits.argmax(-1) == labels).sum())))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "fixed", "grid"), SEARCHES)
def test_the_best_setting_is_that_of_a_loop(name, fixed, grid, dtype):
    episodes, labels = hard_episodes(dtype)
    found = search_grid(create_method(name, **fixed), episodes, labels, grid)
    each = one_by_one(name, fixed, grid, episodes, labels)
    best = max(right for _, right in each)
    assert (found.values, found.correct) == next((setting, right) for setting, right in each if right == best)
    assert repr(found.method) == repr(create_method(name, **{**fixed, **found.values}))
    assert found.queries == labels.numel() and found.accuracy == found.correct / labels.numel()
    assert np.array_equal(found.right.flatten(), [right for _, right in each])
    assert list(found.right.shape) == [len(values) for values in grid.values()]


@pytest.mark.parametrize(("name", "grid"), [(name, grid) for name, fixed, grid in SEARCHES[:5] if not fixed])
def test_the_method_is_not_asked_where_rounding_decides_nothing(name, grid, monkeypatch):
    """That is so for these episodes in float64; were it asked, the answers would be right whatever the intervals are."""
    def asked(*given):
        raise AssertionError("no interval was used")

    episodes, labels = hard_episodes()
    monkeypatch.setattr(GridMethod, "answer", asked)
    search_grid(create_method(name), episodes, labels, grid)


def test_ties_go_to_the_first_setting_of_the_grid():
    episodes, labels = hard_episodes()
    # The very large weights answer alike: only the votes count then.
    for values in ([1e7, 1e8], [1e8, 1e7]):
        found = search_grid(create_method("tip_adapter"), episodes, labels, {"alpha": values})
        assert found.right[0] == found.right[1] and found.values == {"alpha": values[0]}


def test_equal_logits_count_as_the_method_counts_them():
    """Classes with equal texts and equal support: every setting has ties everywhere, which the first class wins."""
    episodes, _ = hard_episodes(torch.float32, episodes=1)
    one = episodes.support[:, :1].expand(-1, 15, -1)
    episodes = episodes.replace(text=episodes.text[:, :1].expand(-1, 5, -1), support=one)
    labels = torch.arange(110)[None] % 5
    found = search_grid(create_method("tip_adapter"), episodes, labels, {"alpha": ALPHA, "beta": BETA})
    assert found.correct == 22 == int((create_method("tip_adapter")(episodes).argmax(-1) == labels).sum())


@pytest.mark.parametrize("name", ["tip_adapter", "tip_x", "ape"])
def test_blocks_of_queries_and_episodes_change_nothing(name, monkeypatch):
    episodes, labels = hard_episodes()
    whole = search_grid(create_method(name), episodes, labels, {"alpha": ALPHA, "beta": BETA})
    for room in (15 * 8 * 7, 15 * 8 * 110):  # 7 queries; one episode
        monkeypatch.setattr(grid_module, "_BLOCK_BYTES", room)
        blocks = search_grid(create_method(name), episodes, labels, {"alpha": ALPHA, "beta": BETA})
        assert torch.equal(blocks.right, whole.right) and blocks.values == whole.values


def test_a_method_without_multipliers_shares_its_work():
    @dataclasses.dataclass(frozen=True)
    class Nearness(GridMethod):
        """Cosines to texts to a power: `tip_adapter` is a GridMethod with a multiplier, this is one without."""

        power: float = 1.0
        reused = ("power",)

        def shared(self, episodes):
            return create_method("zero_shot")(episodes).transpose(1, 2)

        def parts(self, shared):
            return (shared.sign() * shared.abs() ** self.power,)

    episodes, labels = hard_episodes()
    method = Nearness()
    for number, logits in method.logits_over(episodes, [{"power": 0.5}, {"power": 2.0}]):
        assert torch.equal(logits, Nearness((0.5, 2.0)[number])(episodes))
    found = grid_module._counts(method, episodes, labels, [{"power": 2.0}])
    assert int(found[0]) == int((create_method("zero_shot")(episodes).argmax(-1) == labels).sum())


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"expected int64 \[E, Q\] = \(2, 110\)"),
    ({"labels": torch.full((2, 110), 5)}, "labels span 5..5"),
    ({"grid": {}}, "at least one hyper-parameter"), ({"grid": {"alpha": []}}, "at least one hyper-parameter"),
    ({"grid": {"alfa": [1.0]}}, "did you mean 'alpha'"), ({"grid": {"alpha": [1.0, -1.0]}}, "alpha=-1.0"),
    ({"grid": {"alpha": ["much"]}}, "alpha='much'"),
])
def test_refuses_what_cannot_be_searched(change, message):
    episodes, labels = hard_episodes()
    given = {"labels": labels, "grid": {"alpha": ALPHA}, **change}
    with pytest.raises(FewshotError, match=message):
        search_grid(create_method("tip_adapter"), episodes, **given)


# -- tune -----------------------------------------------------------------------------------------------------------------


def bank_with_texts():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(12).repeat_interleave(30)
    centres = torch.randn(12, 16, generator=draw)
    features = (centres[labels] + 1.5 * torch.randn(len(labels), 16, generator=draw)).relu()
    texts = centres.relu() + torch.randn(12, 16, generator=draw)
    return FeatureBank(features, labels, name="toy", split="val", texts=ClassTexts(texts, logit_scale=5.0))


@pytest.mark.parametrize(("name", "grid"), [("tip_x", {"alpha": ALPHA[:2], "beta": BETA[1:3], "gamma": GAMMA[:2]}),
                                            ("ape", {"gamma": GAMMA[:3], "alpha": ALPHA[:2]})])
def test_tune_finds_together_what_it_finds_one_by_one(name, grid, tmp_path, monkeypatch):
    run = Run(split="val", backbone="none", method=name, episodes=70)
    together = tune(run, grid, bank=bank_with_texts(), store=Store(tmp_path / "together"))
    with monkeypatch.context() as patch:
        patch.setattr("fewshot.tuning.search.GridMethod", type("NoMethod", (), {}))
        apart = tune(run, grid, bank=bank_with_texts(), store=Store(tmp_path / "apart"))
    assert json.loads(together.record.read_text()) == json.loads(apart.record.read_text())
    assert together.record.name == apart.record.name and together.chosen == apart.chosen
    for a, b in zip(together.candidates, apart.candidates, strict=True):
        assert a.record == b.record and a.fingerprint == b.fingerprint
        assert a.arrays().keys() == b.arrays().keys()
        assert all(torch.equal(values, b.arrays()[key]) for key, values in a.arrays().items())
        assert {**a.summary(), "seconds": 0} == {**b.summary(), "seconds": 0}
    assert len({r.accuracy.mean for r in together.candidates}) > 2


def test_tune_together_repeats_nothing_that_is_stored(tmp_path, monkeypatch):
    run, bank = Run(split="val", backbone="none", method="tip_adapter", episodes=20), bank_with_texts()
    first = tune(run, {"alpha": [1.0, 2.0]}, bank=bank, store=Store(tmp_path))
    asked = []
    original = GridMethod.logits_over
    monkeypatch.setattr(GridMethod, "logits_over", lambda self, episodes, settings: (
        asked.extend(settings), original(self, episodes, settings))[1])
    again = tune(run, {"alpha": [1.0, 2.0, 3.0]}, bank=bank, store=Store(tmp_path))
    assert {each["alpha"] for each in asked} == {3.0}
    assert [r.accuracy.mean for r in again.candidates[:2]] == [r.accuracy.mean for r in first.candidates]
