"""Weights remember the classes that trained or chose them, and results on these say so."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fewshot
from fewshot import FeatureBank, ImageBank, TrainConfig, create_backbone, embed, evaluate
from fewshot.backbones.seen import leak_notes, seen_in
from fewshot.backbones.weights import read_weights, save_weights
from fewshot.data.banks import concatenate
from fewshot.experiments.transfer import Origin
from fewshot.reporting.accuracy_tables import results_table

SETTINGS = {"ways": 3, "queries": 4, "episodes": 10}


def bank(split, names, seed=0, name="folder"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (len(names) * 8, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return ImageBank(images, torch.arange(len(names)).repeat_interleave(8), tuple(names), name, split)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network trained on the classes a to e and chosen by f to h, and its file."""
    out = tmp_path_factory.mktemp("run")
    config = TrainConfig(ways=3, queries=2, steps=2, validate_every=2, validation_episodes=5, validation_ways=3,
                         validation_queries=2)
    net = create_backbone("conv4", channels=1, image_size=28)
    return fewshot.train(config, bank("train", "abcde"), bank("val", "fgh", 1), net, out=out, progress=False)


def notes(images, net):
    return evaluate(bank=embed(images, net, progress=False), **SETTINGS).notes


def of_file(trained):
    return create_backbone("conv4", channels=1, image_size=28, weights=trained.weights)


@pytest.mark.parametrize("network", [lambda trained: trained.backbone, of_file], ids=["in memory", "from its file"])
def test_results_on_classes_seen_before_say_so(trained, network):
    net = network(trained)
    assert notes(bank("test", "deklm", 2), net)[0] == (
        "conv4 was trained on 2 of the 5 classes evaluated here (split train of folder): accuracy on classes seen before is "
        "not few-shot accuracy")
    assert "was chosen by its accuracy on 1 of the 4 classes" in notes(bank("test", "hklm", 2), net)[0]
    assert "was trained on the same images (split train of folder)" in notes(bank("train", "abcde"), net)[0]
    for other in (bank("test", "klmn", 2), bank("test", "abcde", 2, "elsewhere")):
        assert not any("seen before" in note for note in notes(other, net))


def test_the_note_is_below_the_table_and_of_further_training_and_of_ensembles(trained, tmp_path):
    net = of_file(trained)
    further = fewshot.train(TrainConfig(ways=3, queries=2, steps=1, validate_every=0), bank("train", "vwxyz", 3), None, net,
                            out=tmp_path / "further", progress=False).backbone
    save_weights(further, tmp_path / "copy.safetensors")
    copied = seen_in(read_weights(tmp_path / "copy.safetensors")[2])
    assert [(item["role"], "".join(item["class_names"])) for item in copied] == [("trained", "abcde"), ("chosen", "fgh"),
                                                                                ("trained", "vwxyz")]
    images = bank("test", "avklm", 4)
    both = concatenate([embed(images, each, progress=False) for each in (create_backbone("pixels"), further)])
    result = evaluate(bank=both, **SETTINGS)
    assert sum("1 of the 5 classes" in note for note in results_table([result]).notes) == 1
    assert Origin.of_file(tmp_path / "copy.safetensors").data[2][:2] == ("folder", "train")


def test_a_method_on_images_says_so_too(trained):
    method = fewshot.create_method("maml", inner_steps=1).with_backbone(of_file(trained), 3)
    assert "2 of the 4 classes" in evaluate(bank=bank("test", "abkl", 5), method=method, **SETTINGS).notes[0]


def test_what_older_files_know():
    """Names of classes came later: then the split, and the content of the images, decide."""
    old = seen_in({"run": {"train_bank": {"name": "cifar_fs", "split": "train", "content_hash": "1"}, "val_bank": None}})

    def about(name, split, content="2", classes=("apple",)):
        return leak_notes("conv4", old, name, split, content, classes)

    assert "split train of cifar_fs: " in about("cifar_fs", "train")[0] and about("cifar_fs", "all")
    assert "may share classes" in about("fc100", "test")[0] and "the same images" in about("x", "test", "1")[0]
    assert about("cifar_fs", "test") == () == about("omniglot", "train")
    known = [{**old[0], "class_names": ["apple", "pear"]}]
    assert "1 of the 2 classes" in leak_notes("conv4", known, "fc100", "test", "2", ["apple", "bus"])[0]
    converted = seen_in({"dataset": "mini_imagenet"})
    assert leak_notes("resnet12", converted, "mini_imagenet", "train", "2", []) and \
        leak_notes("resnet12", converted, "mini_imagenet", "test", "2", []) == ()


def test_generated_names_are_no_classes(trained):
    made_by = {"backbone": "conv4", "seen": [{"role": "trained", "name": "custom", "split": "train", "content_hash": "1",
                                             "class_names": ["class 0", "class 1"]}]}
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    custom = FeatureBank(features, torch.arange(40) % 4, provenance=made_by, split="test")
    assert evaluate(bank=custom, **SETTINGS).notes == ()
    assert evaluate(bank=dataclasses.replace(custom, split="train"), **SETTINGS).notes != ()
