"""What the command line prints and takes, where it stood in somebody's way."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from fewshot import FeatureBank, FewshotError, Run, Store, create_backbone, evaluate, list_methods
from fewshot.cli.app import app
from fewshot.reporting.accuracy_tables import results_table


def call(*arguments, fails=None, columns="80"):
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": columns})
    if fails is None:
        assert done.exception is None, (done.output, done.exception)
    else:
        assert isinstance(done.exception, FewshotError) and fails in str(done.exception)
    return done.output


def toy_bank(spread=1.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12).repeat_interleave(30)
    features = torch.randn(12, 16, generator=generator)[labels] + spread * torch.randn(360, 16, generator=generator)
    return FeatureBank(features.relu(), labels, name="toy", split="test", provenance={"backbone": "net", "weights_id": "ab"})


@pytest.fixture
def features(tmp_path):
    return "--features", toy_bank().save(tmp_path / "toy.safetensors"), "--runs", tmp_path / "runs"


def test_a_hyper_parameter_of_one_of_several_methods(features, tmp_path):
    call("eval", *features, "--method", "protonet,ridge", "--set", "protonet.temperature=5", "--shots", 1,
         "--episodes", 20, "--json", tmp_path / "out.json")
    found = {r["run"]["method"]: r["run"]["parameters"] for r in json.loads((tmp_path / "out.json").read_text())}
    assert found["protonet"]["temperature"] == 5 and "temperature" not in found["ridge"]
    call("eval", *features, "--method", "protonet,ridge", "--set", "rigde.regularisation=2", fails="did you mean 'ridge'")
    call("eval", *features, "--method", "protonet,ridge", "--set", "ridge.temperature=2", fails="parameter of ridge")


def test_the_keys_that_compare_wants_are_printed(features, tmp_path):
    keys = {}
    for command in (("eval", "--method", "protonet,ridge", "--shots", "1,5", "--episodes", 20, *features),
                    ("table", *features[2:])):
        printed = call(*command, columns="200")
        keys[command[0]] = dict(re.findall(r"run (\w{8}): .*(protonet, \w+|ridge, \w+), 5-way 1-shot", printed))
        assert len(re.findall(r"^run \w{8}: ", printed, re.M)) == 4
    assert keys["eval"] == keys["table"] and len(keys["eval"]) == 2
    assert "ridge" in call("compare", *keys["table"], "--runs", tmp_path / "runs")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_names_in_lists_are_never_cut(columns):
    printed = call("list", "methods", columns=columns)
    assert all(re.search(rf"\b{name}\b", printed) for name in list_methods())
    assert re.search(r"\befficientnet_lite0\b", call("list", "backbones", columns=columns))


def test_a_trial_of_a_few_steps_validates_on_few_episodes(tmp_path):
    shared = ("train", "--dataset", "glyphs", "--backbone", "conv4", "--backbone-option", "width=4", "--ways", 5, "--queries", 3)
    call(*shared, "--steps", 2, "--out", tmp_path / "a")
    call(*shared, "--steps", 2, "--out", tmp_path / "b", "--config", "validation_episodes=15")
    episodes = [json.loads((tmp_path / name / "result.json").read_text())["run"]["config"]["validation_episodes"]
                for name in "ab"]
    assert episodes == [12, 15]


def notes(*results):
    return results_table(results).notes


def test_tables_say_which_results_have_fewer_episodes():
    bank = toy_bank()
    few, many = (evaluate(bank=bank, method=name, episodes=n) for name, n in (("ridge", 20), ("protonet", 30)))
    found = notes(few, many)
    assert "20 episodes: ridge." in found and "30 episodes: protonet." in found
    assert not any(note.startswith("20 episodes") for note in notes(few))


def test_tables_mark_untrained_weights_and_what_does_not_beat_the_nearest_prototype(tmp_path):
    bank = toy_bank()
    prototypes, same = (evaluate(bank=bank, method="simple_shot", parameters={"norm": "un", "scale": scale}, episodes=30)
                        for scale in (1.0, 2.0))
    flat = evaluate(bank=bank, method="pt_map", parameters={"iterations": 0, "query_prior": "unknown", "power": 9.0},
                    episodes=30)
    assert flat.accuracy.mean < prototypes.accuracy.mean
    assert "No better than the nearest prototype on the same episodes: pt_map." in notes(prototypes, flat)
    assert not any("No better" in note for note in (*notes(prototypes, same), *notes(flat)))
    better = evaluate(bank=bank, method="pt_map", episodes=30)
    assert better.accuracy.mean > prototypes.accuracy.mean
    assert not any("No better" in note for note in notes(prototypes, better))
    other = evaluate(bank=bank, method="protonet", episodes=31)
    assert not any("No better" in note for note in notes(other, flat))
    call("eval", "--dataset", "glyphs", "--backbone", "conv4", "--episodes", 10, "--shots", 1, "--runs", tmp_path / "runs")
    untrained = next(iter(Store(tmp_path / "runs")))
    assert "Untrained weights: conv4." in notes(untrained) and create_backbone("conv4").weights_id == "random:0"
    assert not any("Untrained" in note for note in notes(prototypes)) and Run().weights is None
