"""A method with weights of its own is trained, found in the weights file, and evaluated with what it was trained with."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from fewshot.backbones import create_backbone, load_weights, save_weights
from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.resolve import resolve
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.experiments.published import find_results
from fewshot.features.source import FeatureSource
from fewshot.features.subject import Subject
from fewshot.methods import create_method
from fewshot.methods.bases.own_weights import method_with_weights
from fewshot.training import TrainConfig, train

STEPS = {"inner_lr": 0.2, "inner_steps": 1, "eval_steps": 2}
PROTOCOL = {"ways": 3, "shots": 1, "queries": 4, "episodes": 20}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """MAML after three steps on glyphs."""
    config = TrainConfig(method="maml", parameters=STEPS, ways=3, queries=3, steps=3, validate_every=0)
    base = load_dataset("glyphs", "train")
    backbone = create_backbone("conv4", channels=1, image_size=28, strided=True, width=8)
    return train(config, base, None, backbone, out=tmp_path_factory.mktemp("maml"), progress=False)


def one_episode(bank):
    return EpisodeSampler(bank, ways=4, shots=1, queries=4).sample(bank, 0, 1)[0]


def run_of(trained, **changes) -> Run:
    return Run(**{"method": "maml", "weights": str(trained.weights), **PROTOCOL, **changes})


def test_the_stored_learner_is_evaluated(trained):
    result = evaluate(run_of(trained))
    bank = load_dataset("glyphs", "test")
    episodes, labels = EpisodeSampler(bank, ways=3, shots=1, queries=4).sample(bank, 0, 20)
    learner = trained.method.eval()
    predicted = learner(episodes.with_features(learner.backbone.transform)).argmax(-1)
    assert torch.equal(result.correct, (predicted == labels).double().mean(1))
    assert result.setting == "transductive" and result.notes == ()
    given = evaluate(Run(**PROTOCOL), bank, method=learner)
    assert given.record.method == "maml" and given.record.parameters == result.record.parameters
    assert given.record.backbone == "conv4"
    assert given.record.weights == result.record.weights.partition("+")[0]
    assert torch.equal(given.correct, result.correct) and given.fingerprint == result.fingerprint


def test_parameters_default_to_those_of_the_training(trained):
    def parameters(**changes):
        return resolve(run_of(trained, **changes)).record.parameters

    assert parameters()["inner_lr"] == 0.2 and parameters()["eval_steps"] == 2
    assert parameters(parameters={"eval_steps": 5}) == {**parameters(), "eval_steps": 5}
    assert parameters(method="anil")["inner_lr"] == 0.01


def test_weights_of_the_method_are_part_of_the_key(trained, tmp_path):
    """The same backbone with a fresh head is another run, and says so."""
    source = FeatureSource()
    backbone = create_backbone("conv4", channels=1, image_size=28, strided=True, width=8)
    load_weights(backbone, trained.weights)
    save_weights(backbone, tmp_path / "alone.safetensors")
    whole = evaluate(run_of(trained), source=source)
    alone = evaluate(run_of(trained, weights=str(tmp_path / "alone.safetensors"), parameters=STEPS), source=source)
    assert whole.record.parameters == alone.record.parameters and whole.record.key != alone.record.key
    assert whole.record.weights.partition("+")[0] == alone.record.weights.partition("+")[0]
    assert "fresh weights" in alone.notes[0]


def test_values_of_hyper_parameters_are_no_weights():
    """UNEM is a module, but what it learns is in the run's parameters: nothing of it is fresh."""
    result = evaluate(Run(method="unem_gaussian", backbone="pixels", ways=3, queries=4, episodes=20))
    assert result.record.weights == create_backbone("pixels").weights_id and not result.notes


def test_notes_name_no_files(trained, tmp_path):
    backbone = create_backbone("conv4", channels=1, image_size=28, strided=True, width=8)
    save_weights(backbone, tmp_path / "alone.safetensors")
    (note,) = evaluate(run_of(trained, weights=str(tmp_path / "alone.safetensors"))).notes
    assert str(tmp_path) not in note


def test_stored_results_are_found_again(trained, tmp_path):
    store, run = Store(tmp_path), run_of(trained)
    first = evaluate(run, store=store)
    assert torch.equal(evaluate(run, store=store).correct, first.correct)
    assert find_results([run], store)[run.key].record == first.record
    fresh = run_of(trained, weights=None, backbone_options={"strided": True, "width": 8})
    evaluate(fresh, store=store)
    assert find_results([fresh], store)[fresh.key].notes


@pytest.mark.parametrize(("changes", "message"), [
    ({"ways": 5}, "3-way episodes"),
    ({"transforms": "l2"}, "are for features"),
    ({"parameters": {"learned_rates": True}}, "do not fit"),
])
def test_what_does_not_fit_is_refused(trained, changes, message):
    with pytest.raises(FewshotError, match=message):
        evaluate(run_of(trained, **changes))


def test_banks_of_the_wrong_kind_are_refused(trained):
    images = load_dataset("glyphs", "test")
    with pytest.raises(FewshotError, match="embed the images first"):
        evaluate(Run(**PROTOCOL), images)
    with pytest.raises(FewshotError, match="bank holds features"):
        evaluate(run_of(trained), FeatureSource().features(Subject(backbone="pixels")))


@pytest.mark.parametrize(("name", "parameters", "pools"), [("relation_net", {"channels": 8, "hidden": 4}, 2),
                                                           ("matching_net", {"full_context": True, "steps": 2}, 4)])
def test_metric_learners_with_weights_are_evaluated(tmp_path, name, parameters, pools):
    config = TrainConfig(method=name, parameters=parameters, ways=3, queries=3, steps=3, lr=0.01, validate_every=0)
    backbone = create_backbone("conv4", channels=1, image_size=28, pools=pools, width=8)
    trained = train(config, load_dataset("glyphs", "train"), None, backbone, out=tmp_path, progress=False)
    run = run_of(trained, method=name, ways=4)  # ways other than those of the training will do
    result, source = evaluate(run), FeatureSource()
    assert result.record.parameters.items() >= parameters.items()
    features = source.features(run.subject)
    given = evaluate(run, features, method=trained.method)
    assert torch.equal(result.correct, given.correct) and result.notes == () and result.setting == "inductive"
    fresh, _ = method_with_weights(name, create_method(name, **parameters), lambda: backbone, 4, None)
    assert not torch.equal(fresh(one_episode(features)), trained.method(one_episode(features)))


def test_a_damaged_method_is_refused(trained, tmp_path):
    data = bytearray(trained.weights.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + length])["method.head.bias"]["data_offsets"]
    data[8 + length + start] ^= 1
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(FewshotError, match="checksum"):
        evaluate(run_of(trained, weights=str(tmp_path / "w.safetensors")))


def test_the_command_line_evaluates_it(trained, tmp_path):
    words = ["eval", "--method", "maml", "--weights", str(trained.weights), "--ways", "3", "--shots", "1", "--queries", "4",
             "--episodes", "20", "--runs", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "maml" in result.output and "±" in result.output
    assert next(iter(Store(tmp_path))).accuracy.mean == evaluate(run_of(trained)).accuracy.mean


def test_base_features_without_features_are_not_ignored(trained):
    bank = FeatureSource().features(Subject(backbone="pixels", split="val"))
    with pytest.raises(FewshotError, match="base_bank without bank"):
        evaluate(run_of(trained), base_bank=dataclasses.replace(bank, split="train"))
