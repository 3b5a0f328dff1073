"""Stored results outlive changes of their method: what was evaluated is a record, not a call of today's constructor."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fewshot
from fewshot.core.errors import FewshotError
from fewshot.evaluation.run import Run
from fewshot.methods import METHODS
from fewshot.methods.contract import Method, create_method
from fewshot.reporting.accuracy_tables import results_table
from tests.evaluation.test_evaluate import toy_bank


@dataclass(frozen=True, eq=False)
class Before(Method):
    """As it was when the result was stored."""

    factor: float = 2.0

    def __call__(self, episodes):
        return self.factor * create_method("protonet")(episodes)


@dataclass(frozen=True, eq=False)
class Gained(Before):
    """It has gained a hyper-parameter."""

    power: float = 1.0


@dataclass(frozen=True, eq=False)
class Renamed(Method):
    """It has renamed one, and gained one."""

    renamed: ClassVar[dict] = {"factor": "scale"}
    scale: float = 2.0
    power: float = 1.0

    def __call__(self, episodes):
        return self.scale * create_method("protonet")(episodes)


@pytest.fixture
def becomes(monkeypatch):
    """Register the method under one name, whatever it is by then."""
    def register(cls):
        monkeypatch.setitem(METHODS._items, "changing", cls)
    return register


@pytest.fixture
def stored(tmp_path, becomes):
    becomes(Before)
    store = fewshot.Store(tmp_path)
    return store, fewshot.evaluate(Run(method="changing", parameters={"factor": 3.0}, episodes=20), toy_bank(), store=store)


@pytest.mark.parametrize(("after", "parameters"), [(Gained, {"factor": 3.0}), (Renamed, {"scale": 3.0})])
def test_a_result_is_found_again_when_its_method_has_changed(stored, becomes, monkeypatch, after, parameters):
    store, before = stored
    becomes(after)
    (read,) = store
    assert read.record == before.record and read.record.key == before.record.key, "as it was stored"
    run = Run(method="changing", parameters=parameters, episodes=20)
    monkeypatch.setattr("fewshot.evaluation.evaluate.collect", lambda *_, **__: pytest.fail("evaluated again"))
    assert fewshot.evaluate(run, toy_bank(), store=store).correct.equal(before.correct)
    fresh = fewshot.Store(store.root)
    assert fewshot.evaluate(run, toy_bank(), store=fresh).correct.equal(before.correct), "also by another process"


@pytest.mark.parametrize("after", [Gained, Renamed])
def test_evaluated_again_it_is_replaced_and_there_is_one_result(stored, becomes, after):
    store, before = stored
    becomes(after)
    name = "scale" if after is Renamed else "factor"
    run = Run(method="changing", parameters={name: 3.0}, episodes=20)
    measured = fewshot.evaluate(run, toy_bank(), store=store, metrics=True)
    assert "nll" in measured.measures and measured.correct.equal(before.correct)
    (only,) = store
    assert only.record == measured.record != before.record and len(list(store.root.glob("*/run.json"))) == 1
    results_table(list(store))


@pytest.mark.parametrize("change", [{"power": 2.0}, {"factor": 4.0}])
def test_another_value_is_another_result(stored, becomes, change):
    store, _ = stored
    becomes(Gained)
    fewshot.evaluate(Run(method="changing", parameters={"factor": 3.0, **change}, episodes=20), toy_bank(), store=store)
    assert len(list(store)) == 2


def test_a_result_of_a_method_that_is_gone_is_shown(stored, monkeypatch):
    store, before = stored
    monkeypatch.delitem(METHODS._items, "changing")
    (read,) = store
    assert read.correct.equal(before.correct) and read.record.parameters == {"factor": 3.0}
    assert "changing" in results_table([read]).to_markdown()
    with pytest.raises(FewshotError, match="unknown method 'changing'"):
        fewshot.evaluate(read.record, toy_bank())


def test_the_new_name_is_named(becomes):
    becomes(Renamed)
    with pytest.raises(FewshotError, match="factor of changing is called scale now"):
        create_method("changing", factor=3.0)
    assert Run.from_dict({"method": "changing", "parameters": {"factor": 3.0}}).parameters == {"scale": 3.0, "power": 1.0}


def test_a_record_from_before_a_setting_of_the_protocol_is_that_of_its_default(stored):
    store, before = stored
    folder = store.folder(before.record)
    values = json.loads((folder / "run.json").read_text())
    del values["k_eff"]  # as if it had come later
    (folder / "run.json").write_text(json.dumps(values))
    (read,) = fewshot.Store(store.root)
    assert read.record.k_eff is None and "k_eff" not in read.record.values and read.record.key != before.record.key
    assert fewshot.Store(store.root).load(before.record).correct.equal(before.correct)


def test_kept_results_stand_back_behind_equal_ones(stored, tmp_path, becomes):
    kept, before = stored
    store = fewshot.Store(tmp_path / "own", kept=kept.root)
    assert [r.record for r in store] == [before.record] and store.load(before.record) is not None
    becomes(Gained)
    run = Run(method="changing", parameters={"factor": 3.0}, episodes=20)
    measured = fewshot.evaluate(run, toy_bank(), store=store, metrics=True)
    assert [r.record for r in store] == [measured.record] and list(kept), "nothing is written to what is kept"


# -- notes -------------------------------------------------------------------------------------------------------------

def bank(name: str, pretrained_on: str | None = "ImageNet-1k") -> fewshot.FeatureBank:
    return dataclasses.replace(toy_bank(), name=name,
                               provenance={"backbone": "efficientnet_lite0", "pretrained_on": pretrained_on})


@pytest.mark.parametrize(("name", "says"), [("caltech101", "contains"), ("cub", "contains"), ("folder", "may contain"),
                                            ("mine", "may contain")])
def test_what_the_backbone_has_seen_is_noted_for_a_bank(name, says):
    """As the command line notes it for the same features in a file."""
    (note,) = fewshot.evaluate(Run(episodes=10), bank(name)).notes
    assert note == f"efficientnet_lite0 was pre-trained on ImageNet-1k, which {says} classes like those of {name}"


@pytest.mark.parametrize(("name", "pretrained_on"), [("caltech101", None), ("omniglot", "ImageNet-1k"), ("glyphs", "x")])
def test_nothing_is_noted_where_nothing_was_seen(name, pretrained_on):
    assert fewshot.evaluate(Run(episodes=10), bank(name, pretrained_on)).notes == ()


def test_notes_of_the_caller_come_behind():
    seen = fewshot.evaluate(Run(episodes=10), bank("cub"), notes=("one more",)).notes
    assert len(seen) == 2 and seen[1] == "one more"
    assert fewshot.evaluate(Run(episodes=10), bank("cub"), notes=seen[:1]).notes == seen[:1], "not twice"


# -- devices -----------------------------------------------------------------------------------------------------------

def test_a_device_that_is_not_there_is_named():
    with pytest.raises(FewshotError, match="device 'gpu' cannot be used here .*choose auto or cpu"):
        fewshot.evaluate(Run(episodes=10), toy_bank(), device="gpu")


def test_keys_do_not_depend_on_the_device(request):
    device = request.config.getoption("device")
    here, there = (fewshot.evaluate(Run(episodes=60, method="soft_kmeans"), toy_bank(), device=d) for d in ("cpu", device))
    assert here.record == there.record and here.fingerprint == there.fingerprint
    torch.testing.assert_close(here.correct, there.correct, rtol=0, atol=0.02)
    assert all(value.device.type == "cpu" for value in there.arrays().values())
