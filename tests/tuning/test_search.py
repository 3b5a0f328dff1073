"""Hyper-parameters are chosen on validation classes only, on the same episodes, and the search is recorded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewshot.cli.app import app
from fewshot.cli.values import pairs, value_lists
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.reporting.accuracy_tables import results_table
from fewshot.reporting.search_table import search_table
from fewshot.statistics import paired_difference
from fewshot.tuning.search import Range, fit_run, tune
from fewshot.tuning.unrolled import load_fitted, save_fitted

RUN = Run(split="val", backbone="none", method="soft_kmeans", episodes=100)


def toy_bank(split="val", dim=16, classes=12, images=30, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images)
    centres = torch.randn(classes, dim, generator=generator)
    features = centres[labels] + spread * torch.randn(len(labels), dim, generator=generator)
    return FeatureBank(features.relu(), labels, name="toy", split=split)


def test_every_candidate_sees_the_same_episodes_and_the_better_value_is_chosen():
    # With scale 0.001 every query counts for every class: the means move to the centre, so large scales must win.
    found = tune(dataclasses.replace(RUN, parameters={"scale": 0.001}), {"scale": [0.001, 0.1, 5.0, 10.0]}, bank=toy_bank())
    assert len({r.fingerprint for r in found.candidates}) == 1
    assert [r.record.parameters["scale"] for r in found.candidates] == [0.001, 0.1, 5.0, 10.0]
    best = max(found.candidates, key=lambda r: r.accuracy.mean)
    assert found.chosen["scale"] in (5.0, 10.0) and found.best.parameters["scale"] == found.chosen["scale"]
    assert paired_difference(best.correct, found.candidates[0].correct).significant
    assert found.best.split == "val" and found.best.parameters["norm"] == "me"


def test_the_starting_value_is_kept_when_it_cannot_be_distinguished():
    # A temperature changes no prediction: every candidate ties exactly, and the one the run had must be kept.
    run = dataclasses.replace(RUN, method="protonet", parameters={})
    found = tune(run, {"temperature": [0.1, 10.0, 1.0]}, bank=toy_bank())
    assert found.chosen == {"temperature": 1.0} and "starting values" in search_table(found).notes[1]
    found = tune(dataclasses.replace(run, parameters={"temperature": 10.0}), {"temperature": [0.1, 1.0]}, bank=toy_bank())
    assert found.chosen == {"temperature": 10.0}


def test_of_indistinguishable_candidates_the_one_closest_to_the_start_wins():
    # iterations=1 is the nearest class mean, so `scale` is without effect there: the start (scale 5, 1 iteration) must
    # lose to 200 iterations, and of these the one with the starting scale must be taken if it ties.
    run = dataclasses.replace(RUN, parameters={"iterations": 1}, shots=1, episodes=600)
    found = tune(run, {"iterations": [1, 200], "scale": [5.0, 5.001]}, bank=toy_bank())
    assert found.chosen == {"iterations": 200, "scale": 5.0}
    tied = [r for r in found.candidates if r.record.parameters["iterations"] == 200]
    assert not paired_difference(tied[0].correct, tied[1].correct).significant


@pytest.mark.parametrize("split", ["test", "train", "all"])
def test_other_splits_are_refused(split):
    for run, bank in ((dataclasses.replace(RUN, split=split), None), (RUN, toy_bank(split))):
        with pytest.raises(FewshotError, match="validation classes"):
            tune(run, {"scale": [1.0]}, bank=bank)
        with pytest.raises(FewshotError, match="validation classes"):
            fit_run(dataclasses.replace(run, method="unem_gaussian", parameters={}), bank=bank)


@pytest.mark.parametrize(("search", "message"), [
    ({"grid": {}}, "nothing to search"),
    ({"grid": {"scal": [1.0]}}, "did you mean 'scale'"),
    ({"grid": {"scale": []}}, "no values for scale"),
    ({"ranges": {"scale": Range(1, 10)}}, "random search"),
    ({"grid": {"scale": [1.0]}, "ranges": {"scale": Range(1, 10)}, "samples": 3}, "both a range and listed values"),
    ({"grid": {"scale": [1.0]}, "samples": 0}, "0 random draws"),
    ({"grid": {"scale": [5.0, -1.0]}}, "scale=-1.0"),
])
def test_searches_that_make_no_sense_stop_before_anything_is_evaluated(search, message, tmp_path):
    with pytest.raises(FewshotError, match=message):
        tune(RUN, bank=toy_bank(), store=Store(tmp_path), **search)
    assert list(tmp_path.iterdir()) == []


def test_random_search_is_reproducible_and_stays_in_its_ranges():
    search = {"ranges": {"scale": Range(0.1, 100.0, log=True), "iterations": Range(2, 4)}, "samples": 12}
    run, bank = dataclasses.replace(RUN, episodes=5), toy_bank()
    a, b, other = (tune(run, bank=bank, seed=seed, **search) for seed in (3, 3, 4))
    drawn = [[(r.record.parameters["scale"], r.record.parameters["iterations"]) for r in found.candidates]
             for found in (a, b, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] == (5.0, 200), "the first candidate is the run itself"
    kinds = [type(Range(1, 9).draw(np.random.default_rng(0), present)) for present in (None, 3, 5.0)]
    assert kinds == [int, int, float], "whole numbers, but not for a parameter that is a float"
    assert len(tune(run, {"scale": [5, 5.0, 6]}, bank=bank).candidates) == 2, "5 is 5.0"
    scales, iterations = zip(*drawn[0][1:], strict=True)
    assert all(0.1 <= s <= 100 for s in scales) and set(iterations) == {2, 3, 4}
    assert min(scales) < 1 < 10 < max(scales), "logarithmic: each decade is as likely"


def test_the_record_holds_the_whole_search(tmp_path):
    store, bank = Store(tmp_path), toy_bank()
    found = tune(RUN, {"scale": [1.0, 10.0]}, bank=bank, store=store)
    record = json.loads(found.record.read_text())
    assert record["chosen"] == found.chosen and record["fingerprint"] == found.candidates[0].fingerprint
    assert record["run"]["split"] == "val" and record["run"]["data"] == bank.content_hash
    assert record["search"]["grid"] == {"scale": [1.0, 10.0]} and record["other_parameters"]["norm"] == "me"
    keys = {c["run"] for c in record["candidates"]}
    assert {r.record.key for r in store} == keys == {r.record.key for r in found.candidates}
    top = max(found.candidates, key=lambda r: r.accuracy.mean)
    for entry, result in zip(record["candidates"], found.candidates, strict=True):
        gap = paired_difference(result.correct, top.correct)
        assert entry["parameters"] == {"scale": result.record.parameters["scale"]}
        assert entry["accuracy"] == result.accuracy.mean and entry["interval95"] == result.accuracy.half_width
        assert entry["difference_to_best"] == gap.difference.mean and entry["distinguishable"] == gap.significant
    assert tune(RUN, {"scale": [1.0, 10.0]}, bank=bank, store=store).record == found.record, "the same search, the same file"
    assert tune(RUN, {"scale": [1.0, 20.0]}, bank=bank, store=store).record != found.record


def test_methods_that_need_base_classes_for_some_values_only():
    run = dataclasses.replace(RUN, method="simple_shot", parameters={"norm": "l2n"})
    base = toy_bank("train", seed=5)
    found = tune(run, {"norm": ["l2n", "cl2n", "un"]}, bank=toy_bank(), base_bank=base)
    expected = evaluate(dataclasses.replace(run, parameters={"norm": "cl2n"}), toy_bank(), base_bank=base)
    assert torch.equal(found.candidates[1].correct, expected.correct)


def test_what_was_learned_is_part_of_the_run(tmp_path):
    run = dataclasses.replace(RUN, method="unem_gaussian", parameters={"layers": 3}, episodes=20)
    found = fit_run(run, bank=toy_bank(), epochs=5)
    assert found.provenance["split"] == "val" and found.provenance["data"] == toy_bank().content_hash
    assert found.provenance["episodes"] == 20 and found.provenance["episode_seed"] == 0
    fitted = load_fitted(save_fitted(tmp_path / "fitted.safetensors", found))
    test = dataclasses.replace(run, split="test", parameters=fitted.parameters)
    plain = dataclasses.replace(run, split="test")
    again = Run.from_dict(json.loads(json.dumps(test.to_dict())))
    assert again == test and again.key == test.key != plain.key
    changed = json.loads(json.dumps(fitted.parameters))
    changed["learned"]["prior"][2] += 1e-12
    assert dataclasses.replace(test, parameters=changed).key != test.key
    store, bank = Store(tmp_path / "runs"), toy_bank("test", seed=2)
    result = evaluate(test, bank, store=store)
    direct = evaluate(plain, bank, method=found.method)
    assert torch.equal(result.correct, direct.correct)
    assert store.load(result.record).record == result.record
    text = results_table([result, evaluate(plain, bank, store=store)]).to_markdown()
    assert "learned=#" in text and "[" not in text.split("learned=#")[1][:10], "the digest, not dozens of numbers"


def test_options_are_read_as_values():
    assert value_lists(["scale=5,10.5", "norm=l2n,un", "prior=(1, 2),none"]) == {
        "scale": [5, 10.5], "norm": ["l2n", "un"], "prior": [(1, 2), "none"]}
    assert pairs(["a=1e-3", "b=x"]) == {"a": 0.001, "b": "x"}
    for wrong in (["scale"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(FewshotError):
            value_lists(wrong)
    for low, high, log in ((2, 1, False), (0, 1, True), (float("nan"), 1, False)):
        with pytest.raises(FewshotError, match="range"):
            Range(low, high, log)


def test_the_commands(tmp_path, monkeypatch):
    """tune, then fit, then evaluate what was learned, from files."""
    monkeypatch.chdir(tmp_path)
    for split in ("val", "test"):
        toy_bank(split).save(tmp_path / f"{split}.safetensors")

    def call(*arguments, fails=None):
        done = CliRunner().invoke(app, list(arguments))
        if fails is None:
            assert done.exception is None, (done.output, done.exception)
        else:
            assert isinstance(done.exception, FewshotError) and fails in str(done.exception)
        return done.output

    searched = call("tune", "--method", "soft_kmeans", "--features", "val.safetensors", "--grid", "norm=me,un", "--range",
                    "scale=1:20:log", "--random", "3", "--episodes", "50")
    assert "chosen: --method soft_kmeans --set norm=" in searched and len(list((tmp_path / "runs/tune").glob("*.json"))) == 1
    call("tune", "--method", "soft_kmeans", "--features", "test.safetensors", "--grid", "scale=1",
         fails="validation classes")
    call("tune", "--method", "soft_kmeans", "--features", "val.safetensors", "--range", "scale=1-2", "--random", "2",
         fails="LOW:HIGH")
    learned = call("fit", "--features", "val.safetensors", "--episodes", "10", "--epochs", "2", "--set", "layers=2", "--out",
                   "unem.safetensors")
    assert "fewshot eval --method unem_gaussian --learned unem.safetensors" in learned
    call("eval", "--features", "test.safetensors", "--method", "paddle,unem_gaussian", "--learned", "unem.safetensors",
         "--shots", "1", "--episodes", "20", "--json", "out.json")
    records = {r["run"]["method"]: r["run"]["parameters"] for r in json.loads((tmp_path / "out.json").read_text())}
    assert records["unem_gaussian"]["learned"] == load_fitted("unem.safetensors").method.learned
    assert records["unem_gaussian"]["layers"] == 2 and "learned" not in records["paddle"]
    call("eval", "--features", "test.safetensors", "--method", "paddle", "--learned", "unem.safetensors",
         fails="holds values of unem_gaussian")


def test_candidates_carry_base_statistics_only_where_they_use_them(tmp_path):
    """The keys are those `evaluate` gives the same runs, and the base bank is guarded as it is there."""
    val, base = toy_bank("val"), toy_bank("train", seed=1)
    run = Run(split="val", method="simple_shot", episodes=20, parameters={"norm": "l2n"})
    found = tune(run, {"norm": ["l2n", "cl2n"]}, bank=val, base_bank=base)
    assert [r.record.base is not None for r in found.candidates] == [False, True]
    for result in found.candidates:
        assert evaluate(run, val, base_bank=base, parameters=result.record.parameters).record.key == result.record.key
    with pytest.raises(FewshotError, match="base_bank holds split 'test'"):
        tune(run, {"norm": ["cl2n"]}, bank=val, base_bank=dataclasses.replace(base, split="test"))
