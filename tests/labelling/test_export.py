"""Own classifiers as files for ONNX Runtime: the same answers without torch, and what cannot be written."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewshot import export_onnx, predict_folder, wrap_backbone
from fewshot.backbones import create_backbone
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.labelling import export
from tests.labelling.test_predict import COLOURS, picture

needs_onnx = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))),
                                reason="needs the extra: pip install 'fewshot[onnx]'")
LIMIT = 1e-4  # what is promised
# Runs a program where nothing but the standard library, onnxruntime, numpy and Pillow can be imported.
ALONE = """
import importlib.abc, runpy, sys

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"onnxruntime", "numpy", "PIL"}:
            raise ModuleNotFoundError(f"{name} is no part of the deployment", name=name)

sys.meta_path.insert(0, Refusing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def fill(folder):
    """Three colours with 1, 2 and 3 examples, and every kind of image file to label. Returns (support, queries)."""
    support, queries = folder / "support", folder / "queries"
    for shots, name in enumerate(COLOURS, 1):
        (support / name).mkdir(parents=True)
        (queries / ".hidden").mkdir(parents=True, exist_ok=True)
        (queries / "more").mkdir(exist_ok=True)
        for number in range(shots):
            picture(name, number).save(support / name / f"{number}.png")
        picture(name, 10).save(queries / f"{name}.PNG")
        picture(name, 11, (300, 200)).save(queries / "more" / f"{name}.jpg")
        picture(name, 12).save(queries / ".hidden" / f"{name}.jpg")
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.new("RGB", (60, 40), COLOURS["blue"])
    turned.paste(COLOURS["red"], (0, 0, 30, 40))
    turned.save(queries / "turned.png", exif=exif)
    clear = picture("green", 20).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(queries / "clear, or not.png")
    picture("green", 20).convert("P").save(queries / "palette.gif")
    Image.fromarray(np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40)).save(queries / "deep.png")
    (queries / "broken.jpg").write_text("no image")
    (queries / "cut.png").write_bytes((queries / "red.PNG").read_bytes()[:200])
    (queries / "loop").symlink_to(queries)
    return support, queries


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def exported(folders, tmp_path_factory):
    return export_onnx(folders[0], tmp_path_factory.mktemp("export"), backbone="conv4")


def alone(*arguments, code=0):
    """What the program prints."""
    done = subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          cwd=Path(arguments[0]).parent)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def probabilities(rows):
    return np.array([[float(p) for key, p in row.items() if key.startswith("p(") and p] for row in rows
                     if row["predicted"]])


@needs_onnx
@pytest.mark.filterwarnings("ignore:.*(cannot be read|lies in)")
def test_the_program_alone_prints_what_predict_writes(folders, exported):
    """Files of every kind, those that cannot be read included, decoded to the same pixels."""
    ours = table(predict_folder(*folders, backbone="conv4").to_csv())
    found = table(alone(exported.runner, folders[1]))
    assert len(found) == 12 and [row["file"] for row in found] == [row["file"] for row in ours]
    for key in ("predicted", "note"):
        assert [row[key] for row in found] == [row[key] for row in ours]
    assert sum(row["note"] != "" for row in found) == 2
    p = probabilities(found)
    assert p.shape == (10, 3) and np.abs(p - probabilities(ours)).max() <= LIMIT and exported.difference <= LIMIT
    assert {row["predicted"] for row in found} == {*COLOURS, ""} and np.ptp(p) > 0.5


@needs_onnx
@pytest.mark.slow
def test_one_image_of_100_megapixels_and_a_file_for_the_table(exported, tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    assert alone(exported.runner, tmp_path / "huge.png", "--out", tmp_path / "a.csv") == ""
    row, = table((tmp_path / "a.csv").read_text())
    assert row["file"] == "huge.png" and row["predicted"] in COLOURS and row["note"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "huge.png"]


@needs_onnx
@pytest.mark.slow
def test_the_program_names_what_is_missing(folders, exported, tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    for arguments, part in (((tmp_path / "lost",), "lost is neither a folder nor an image file"),
                            ((tmp_path,), "has no image to label"),
                            ((folders[1], "--model", tmp_path / "lost"), "no model at"),
                            ((folders[1], "--model", tmp_path / "model.onnx"), "write it again with `fewshot export`")):
        text = alone(exported.runner, *arguments, code=2)
        assert part in text and "Traceback" not in text


@needs_onnx
def test_the_file_says_what_it_is_and_nothing_of_this_machine(folders, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported.model))
    about = json.loads(session.get_modelmeta().custom_metadata_map["fewshot"])
    backbone = create_backbone("conv4")
    assert about["class_names"] == ["blue", "green", "red"] and about["image_size"] == 84 and about["channels"] == 3
    assert about["transform"] == backbone.transform.spec and about["weights_id"] == backbone.weights_id
    assert about["description"] == exported.description == "protonet (temperature=0.1) after l2 on conv4"
    assert [(value.name, value.type) for value in session.get_inputs()] == [("images", "tensor(uint8)")]
    for count in (1, 5):
        images = np.zeros((count, 3, 84, 84), np.uint8)
        assert session.run(None, {"images": images})[0].shape == (count, 3)
    for path in (export.__file__, str(folders[0]), sys.prefix):
        assert path.encode() not in exported.model.read_bytes()


METHODS = [("protonet", {}, "power(0.5),center_base,l2"), ("protonet", {"temperature": 0.2}, "tukey(0.5),l2"),
           ("simple_shot", {"norm": "cl2n", "scale": 5.0}, "standardise"),
           ("simple_shot", {"norm": "l2n", "metric": "cosine", "scale": 10.0}, "channel_importance"),
           ("ridge", {}, ""), ("ridge", {"norm": "cl2n"}, ""), ("logistic_regression", {"C": 10.0}, "l2"),
           ("nearest_neighbour", {}, "l2"), ("nearest_neighbour", {"metric": "cosine"}, "")]


@needs_onnx
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(cannot be read|lies in)")
@pytest.mark.parametrize(("method", "parameters", "transforms"), METHODS)
def test_methods_and_transforms(method, parameters, transforms, folders, tmp_path):
    settings = {"method": method, "parameters": parameters, "transforms": transforms, "backbone": "pixels",
                "base_bank": FeatureBank(torch.rand(20, 3 * 28**2), torch.arange(20) % 4, name="base", split="train")}
    made, ours = export_onnx(folders[0], tmp_path, **settings), table(predict_folder(*folders, **settings).to_csv())
    found = table(alone(made.runner, folders[1]))
    assert [row["predicted"] for row in found] == [row["predicted"] for row in ours]
    assert np.abs(probabilities(found) - probabilities(ours)).max() <= LIMIT


@needs_onnx
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(cannot be read|lies in)")
@pytest.mark.parametrize(("name", "options"), [
    ("pixels", {}), ("conv4", {"strided": True, "channels": 1}), ("resnet12", {"squeeze": True}),
    ("resnet18", {}), ("wrn28_10", {}), ("efficientnet_lite0", {"weights": "random"}), ("timm/mobilenetv3_small_050", {}),
    ("timm/vit_tiny_patch16_224", {}), ("resnet12", {"reduce": "max", "image_size": 40})])
def test_backbones(name, options, folders, tmp_path):
    backbone = create_backbone(name, **options)
    made = export_onnx(folders[0], tmp_path, backbone=backbone)
    ours, found = table(predict_folder(*folders, backbone=backbone).to_csv()), table(alone(made.runner, folders[1]))
    assert np.abs(probabilities(found) - probabilities(ours)).max() <= LIMIT


class Branching(nn.Module):
    """Looks at its images before it decides what to compute."""

    def forward(self, images):
        return images.flatten(1) * (2 if images.mean() > 0.3 else 1)


@needs_onnx
def test_what_is_no_classifier_of_one_image_is_refused(folders, tmp_path):
    batch = create_backbone("conv4", batch_norm="batch")
    for settings, part in (({"method": "pt_map"}, "pt_map is transductive"), ({"method": "maml"}, "maml adapts a backbone"),
                           ({"method": "matching_net"}, "choose one of linear_probe_clip, logistic_regression, nearest"),
                           ({"transforms": "l2,center_episode"}, "the transform center_episode looks at all images"),
                           ({"transforms": "center_base"}, "needs statistics of the base classes"),
                           ({"backbone": batch}, "batch_norm='batch' of conv4")):
        with pytest.raises(FewshotError, match=part):
            export_onnx(folders[0], tmp_path / "out", **{"backbone": "pixels", **settings})
    assert not (tmp_path / "out").exists()


@needs_onnx
@pytest.mark.slow
def test_a_network_that_looks_before_it_decides_is_refused(folders, tmp_path, capfd):
    with pytest.raises(FewshotError, match="on Branching cannot be exported .*data-dependent.* choose another backbone"):
        export_onnx(folders[0], tmp_path / "out", backbone=wrap_backbone(Branching(), 3, 20))
    assert not (tmp_path / "out").exists() and capfd.readouterr() == ("", "")


@needs_onnx
@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_written(folders, tmp_path, monkeypatch):
    """The file is run before it is written: here the graph has a classifier that is a little wrong."""
    right = export._Deployed.__init__

    def made(self, network, steps, classifier):
        wrong = classifier.intercept + torch.tensor([0.01, 0, 0])
        right(self, network, steps, dataclasses.replace(classifier, intercept=wrong))

    monkeypatch.setattr(export._Deployed, "__init__", made)
    with pytest.raises(FewshotError, match=r"differ from those of the method by \d\.\de-\d\d, more than 1e-04"):
        export_onnx(folders[0], tmp_path / "out", backbone="pixels")
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(FewshotError, match=r"export needs onnx, .* pip install 'fewshot\[onnx\]'"):
        export_onnx(folders[0], tmp_path / "out")


@needs_onnx
@pytest.mark.slow
def test_the_command(folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--support", str(folders[0]), "--backbone", "pixels", "--method", "ridge", "--set", "scale=3",
              "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and not err and out.startswith("ridge (scale=3) after l2 on pixels: probabilities differ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classify.py", "model.onnx"]
