"""Which tests are across data sets, and the table of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from fewshot.backbones import convert_official, create_backbone, save_weights
from fewshot.core.errors import FewshotError
from fewshot.evaluation.evaluate import evaluate
from fewshot.experiments.transfer import ACROSS, SIMILAR, TRAINED, WITHIN, Origin, domain_table
from tests.datasets.synthetic import write_class_folders

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "cross_domain.py"


def saved(path, *banks: tuple[str, str, str], **provenance) -> Origin:
    """Weights that say they were trained (and validated) on these banks."""
    names = dict(zip(("train_bank", "val_bank"), banks, strict=False))
    run = {name: dict(zip(("name", "split", "content_hash"), bank, strict=True)) for name, bank in names.items()}
    save_weights(create_backbone("conv4", channels=1, image_size=28), path, {"run": run, **provenance})
    return Origin.of_file(path)


def test_relations(tmp_path):
    source = saved(tmp_path / "w", ("omniglot", "train", "abc"), ("omniglot", "val", "def"))
    assert source.name == "omniglot"
    assert source.relation("omniglot", "test", "new") == WITHIN
    assert source.relation("glyphs", "test", "new") == ACROSS
    assert source.relation("caltech101", "test", "new") == ACROSS
    for split in ("train", "val", "all"):  # the validation classes chose the weights
        assert source.relation("omniglot", split, "other images") == TRAINED
    assert source.relation("folder", "all", "abc") == TRAINED, "the same images under another name"
    assert saved(tmp_path / "all", ("glyphs", "all", "x")).relation("glyphs", "test", "y") == TRAINED
    folder = saved(tmp_path / "own", ("folder", "train", "x"))
    assert folder.relation("folder", "test", "y") == TRAINED, "which classes another folder has cannot be known"
    assert folder.relation("glyphs", "test", "y") == ACROSS


def test_relations_of_published_and_pretrained_weights(tmp_path):
    published = saved(tmp_path / "mini", dataset="mini_imagenet")
    assert published.name == "mini_imagenet" and published.relation("mini_imagenet", "test", "x") == WITHIN
    assert published.relation("mini_imagenet", "train", "x") == TRAINED
    assert published.relation("tiered_imagenet", "test", "x") == TRAINED, "it puts classes of the one into the other"
    assert published.relation("cub", "test", "x") == ACROSS
    imagenet = Origin.untrained("efficientnet_lite0", "ImageNet-1k")
    assert imagenet.relation("caltech101", "test", "x") == imagenet.relation("folder", "all", "x") == SIMILAR
    assert imagenet.relation("omniglot", "test", "x") == ACROSS
    assert Origin.untrained("pixels", "nothing").relation("caltech101", "test", "x") == ACROSS
    state = {f"conv{i}.{j}": x for i in range(1, 5) for j, x in conv4_block(3 if i == 1 else 64).items()}
    torch.save(state, tmp_path / "simple_shot.pth")
    convert_official(tmp_path / "simple_shot.pth", tmp_path / "converted", dataset="cifar_fs")
    assert Origin.of_file(tmp_path / "converted").relation("fc100", "test", "x") == TRAINED


def test_base_statistics_of_the_tested_data_are_refused():
    source = Origin.untrained("pixels", "nothing")
    with pytest.raises(FewshotError, match="would take those of glyphs; choose e.g. norm='l2n'"):
        source.run("glyphs", "simple_shot")
    with pytest.raises(FewshotError, match="would take those of glyphs"):
        source.run("glyphs", "protonet", transforms="center_base")
    assert not source.run("glyphs", "simple_shot", parameters={"norm": "l2n"}).spec.needs_base


def conv4_block(inputs: int) -> dict:
    vectors = {f"1.{name}": torch.ones(64) for name in ("weight", "bias", "running_mean", "running_var")}
    return {"0.weight": torch.ones(64, inputs, 3, 3), "0.bias": torch.ones(64), **vectors}


def test_a_network_keeps_the_input_it_was_trained_with(tmp_path):
    """Greyscale weights of 28 pixels on colour images of another size, and the other way round."""
    grey = saved(tmp_path / "grey")
    colour = create_backbone("conv4", channels=3, image_size=32)
    save_weights(colour, tmp_path / "colour")
    folder = write_class_folders(tmp_path / "own", {name: 8 for name in "abcde"})
    small = {"episodes": 10, "queries": 4}
    on_folder = evaluate(grey.run("folder", "protonet", split="all", data_options={"image_size": 40}, **small), root=folder)
    assert on_folder.record.backbone_options == {"channels": 1, "image_size": 28}
    on_glyphs = evaluate(Origin.of_file(tmp_path / "colour").run("glyphs", "protonet", **small))
    assert on_glyphs.record.backbone_options == {"channels": 3, "image_size": 32}


def test_the_table_marks_what_is_not_across(tmp_path):
    source = saved(tmp_path / "w", ("omniglot", "train", "abc"))
    other = Origin("glyphs", "conv4", source.weights, {}, (("glyphs", "train", "abc"),))
    small = {"episodes": 10, "queries": 7}
    result = evaluate(source.run("glyphs", "protonet", **small))
    table = domain_table([(source, ACROSS, result), (other, WITHIN, result)], ["Left out: a on b."])
    text = table.to_markdown()
    assert table.columns == ("glyphs, 5-way 1-shot",) and len(table.labels) == 2
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "†" in rows["glyphs"] and "†" not in rows["omniglot"]
    assert "†: not across data sets" in text and "Left out: a on b." in text
    assert [record["relation"] for record in table.records] == [ACROSS, WITHIN]


@pytest.mark.slow
def test_the_experiment_on_an_own_folder(tmp_path, monkeypatch, capsys):
    folder = write_class_folders(tmp_path / "own", {name: 13 for name in "abcde"})
    weights = tmp_path / "w.safetensors"
    saved(weights, ("folder", "all", "abc"))
    arguments = ["--data-root", str(tmp_path), "--runs", str(tmp_path / "runs"), "--folder", str(folder), "--weights",
                 str(weights), "--episodes", "5"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "left out glyphs on omniglot, missing: data set omniglot" in printed
    assert "Left out: folder (conv4) on folder, whose classes trained" in " ".join(printed.split())
