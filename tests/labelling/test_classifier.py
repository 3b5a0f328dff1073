"""A classifier of own images that lives: what it knows, its file, its review page, the commands."""

from __future__ import annotations

import base64
import csv
import json
import random
import re
import shutil
from html import escape
from itertools import pairwise

import pytest
import torch

from fewshot import Classifier, Decisions, FeatureBank, create_backbone, embed, load_dataset, predict_folder
from fewshot.backbones import save_weights
from fewshot.backbones.wrapped import wrap_backbone
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.core.files import read_safetensors, save_tensors
from fewshot.labelling.contents import VERSION, Contents
from fewshot.labelling.review import COLUMNS, review_page
from tests.browser import browse, needs_browser
from tests.labelling.test_predict import COLOURS, picture
from tests.reporting.test_page import Page

FEW = "ignore:.*too few for a transductive answer"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """In a folder with examples of three colours, 2, 3 and 4 of them, and photos of each colour, one in a folder below."""
    monkeypatch.chdir(tmp_path)
    for shots, name in enumerate(COLOURS, 2):
        (tmp_path / "examples" / name).mkdir(parents=True)
        for number in range(shots):
            picture(name, number).save(tmp_path / "examples" / name / f"{number}.png")
        (tmp_path / "photos" / "more").mkdir(parents=True, exist_ok=True)
        picture(name, 10).save(tmp_path / "photos" / f"{name}.png")
        picture(name, 11).save(tmp_path / "photos" / "more" / f"{name}.png")
    return tmp_path


@pytest.fixture
def network():
    return create_backbone("conv4", channels=3, image_size=20, seed=3, width=8)


def saved(classifier, path="probe.safetensors"):
    return classifier.save(path).read_bytes()


def bits(classifier):
    return classifier.predict("photos").probabilities.numpy().tobytes()


# -- what it knows -----------------------------------------------------------------------------------------------------


def test_it_answers_as_predict_folder_does(place, network):
    classifier = Classifier.from_folder("examples", network)
    found, expected = classifier.predict("photos"), predict_folder("examples", "photos", backbone=network)
    assert found.files == expected.files and found.class_names == expected.class_names == classifier.class_names
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-5)  # features in batches, and one by one
    assert found.description == expected.description and found.notes == expected.notes
    assert found.nearest == expected.nearest and torch.equal(found.decided.sets, expected.decided.sets)
    words = review_page(found, 0.5)
    assert all(f"Near: {', '.join(near)}<" in words for near in found.nearest)
    assert all(f"Set ({len(found.set_of(row))}): " in words for row in range(len(found)))
    assert classifier.class_sizes == {"blue": 2, "green": 3, "red": 4} and len(classifier) == 9
    assert classifier.files["blue"] == ("blue/0.png", "blue/1.png")


@pytest.mark.parametrize("method", ["protonet", "pt_map"])
@pytest.mark.filterwarnings(FEW)
def test_in_pieces_and_in_any_order_it_is_the_same(place, network, method):
    whole = Classifier.from_folder("examples", network, method=method)
    files = sorted((place / "examples").rglob("*.png"))
    random.Random(0).shuffle(files)
    pieces = Classifier(network, method=method)
    for file in files:
        name = file.parent.name
        (pieces.add_images if name in pieces.class_names else pieces.add_class)(name, file)
    assert saved(pieces) == saved(whole)
    assert bits(pieces) == bits(whole)


def test_what_is_added_and_removed_leaves_no_trace(place, network):
    classifier = Classifier.from_folder("examples", network)
    before = saved(classifier)
    classifier.add_class("dark", "photos/more")
    classifier.add_images("red", ["photos/red.png", "photos/blue.png"])
    assert saved(classifier) != before and classifier.class_sizes == {"blue": 2, "dark": 3, "green": 3, "red": 6}
    classifier.remove_class("dark")
    classifier.remove_images(["photos/red.png", "photos/blue.png"])
    assert saved(classifier) == before


def test_an_image_is_known_by_its_pixels(place, network):
    classifier = Classifier.from_folder("examples", network)
    before = saved(classifier)
    shutil.copy("examples/red/0.png", "again.png")
    with pytest.warns(UserWarning, match=r"1 images are there already and held once: .*/again.png = red/0.png"):
        classifier.add_images("red", "again.png")
    with pytest.raises(FewshotError, match=r"again.png is the same image as red/0.png of class 'red'; correct\(\)"):
        classifier.add_images("blue", "again.png")
    shutil.copy("photos/red.png", "twin.png")
    with pytest.raises(FewshotError, match="are the same image, and given two classes, red and blue; decide for one"):
        classifier.correct({"photos/red.png": "red", "twin.png": "blue"})
    assert saved(classifier) == before
    shutil.copy("again.png", "photos/known.png")
    found = classifier.predict("photos")
    assert found.repeated == {"known.png": "red/0.png"} and "in the support" in review_page(found, 0.5)


def test_corrections_change_the_answer(place, network):
    classifier = Classifier.from_folder("examples", network)
    answer = dict(zip(classifier.predict("photos").files, classifier.predict("photos").predicted, strict=True))
    assert answer["red.png"] == "red"
    for number in range(12, 16):
        picture("red", number).save(f"red{number}.png")
    classifier.correct({"photos/red.png": "blue", **{f"red{number}.png": "blue" for number in range(12, 16)}})
    classifier.correct({"examples/blue/0.png": "red", "examples/blue/1.png": "red"})
    assert classifier.class_sizes == {"blue": 5, "green": 3, "red": 6}, "held images change over"
    swapped = dict(zip(*[getattr(classifier.predict("photos"), name) for name in ("files", "predicted")], strict=True))
    assert swapped["more/red.png"] == "blue" and swapped["more/blue.png"] == "red"


def test_wrong_steps_are_named_and_change_nothing(place, network):
    classifier = Classifier.from_folder("examples", network)
    before = saved(classifier)
    (place / "bad.png").write_text("no image")
    for step, message in [
            (lambda: classifier.add_class("red", "photos"), "there is a class 'red' with 4 images; add_images"),
            (lambda: classifier.add_class(" ", "photos"), "give the class a name"),
            (lambda: classifier.add_class("x", []), "no images for class 'x'"),
            (lambda: classifier.add_class("x", ["photos", "bad.png"]), r"class 'x' cannot be read; .*bad.png \(not an im"),
            (lambda: classifier.add_images("rde", "photos"), "unknown class 'rde'; did you mean 'red'"),
            (lambda: classifier.remove_class("rde"), "unknown class 'rde'"),
            (lambda: classifier.remove_images("red/9.png"), "unknown image 'red/9.png'; did you mean 'red/"),
            (lambda: classifier.remove_images(["blue/0.png", "blue/1.png"]), "'blue' would be left without an example"),
            (lambda: classifier.correct({"photos/red.png": "green", "photos/blue.png": "gren"}), "unknown class 'gren'"),
            (lambda: classifier.correct({"photos/lost.png": "green"}), "lost.png .*No such file"),
            (lambda: classifier.correct({f"examples/blue/{n}.png": "red" for n in range(2)}), "'blue' would be left")]:
        with pytest.raises(FewshotError, match=message):
            step()
        assert saved(classifier) == before
    with pytest.raises(FewshotError, match="has 0 classes and needs at least 2"):
        Classifier(network).predict("photos")
    with pytest.raises(FewshotError, match="batch_norm='batch', so that the features of an image depend"):
        Classifier(create_backbone("conv4", image_size=20, batch_norm="batch"))
    with torch.no_grad():
        next(network.parameters()).add_(1)
    with pytest.raises(FewshotError, match="the weights of conv4 have changed"):
        classifier.predict("photos")


def test_two_images_of_one_name_are_told_apart_by_their_hash(place, network):
    classifier = Classifier.from_folder("examples", network)
    (place / "red").mkdir()
    picture("red", 50).save(place / "red" / "0.png")
    classifier.add_images("red", "red/0.png")
    with pytest.raises(FewshotError, match="2 images are called 'red/0.png'") as told:
        classifier.remove_images("red/0.png")
    hashes = re.findall(r"\b[0-9a-f]{12}\b", str(told.value))
    classifier.remove_images(hashes[0])
    assert len(hashes) == 2 and classifier.files["red"].count("red/0.png") == 1


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"method": "pt_map", "parameters": {"scale": 5}, "transforms": "power(0.5),l2"},
                                      {"method": "simple_shot", "parameters": {"norm": "cl2n"}, "transforms": ""}])
@pytest.mark.filterwarnings(FEW)
def test_a_loaded_classifier_answers_bit_for_bit_and_goes_on(place, network, settings):
    if settings.get("method") == "simple_shot":
        settings = settings | {"base_bank": FeatureBank(torch.rand(20, network.feature_dim), torch.arange(20) % 4)}
    classifier = Classifier.from_folder("examples", network, **settings)
    written = saved(classifier, "kept.safetensors")
    again = Classifier.load("kept.safetensors")  # random weights by their seed
    assert saved(again) == written and bits(again) == bits(classifier)
    for one in (again, classifier):
        one.add_images("blue", "photos/blue.png")
    assert saved(again) == saved(classifier) and bits(again) == bits(classifier)
    assert again.predict("photos").description == classifier.predict("photos").description


def test_other_weights_and_networks_are_refused_with_a_remedy(place, network):
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(1.5)  # trained
    save_weights(network, "w.safetensors")
    classifier = Classifier.from_folder("examples", weights="w.safetensors")
    expected = bits(classifier)
    classifier.save("kept.safetensors")
    with pytest.raises(FewshotError, match="made on conv4 with weights of sha256 .*give weights='FILE'"):
        Classifier.load("kept.safetensors")
    for given in ({"weights": "w.safetensors"}, {"backbone": network}):
        assert bits(Classifier.load("kept.safetensors", **given)) == expected
    own = wrap_backbone(torch.nn.Flatten(), 3, 20, name="mine")
    Classifier.from_folder("examples", own).save("own.safetensors")
    with pytest.raises(FewshotError, match="is on 'mine', a network of your own; give it as backbone="):
        Classifier.load("own.safetensors")
    assert Classifier.load("own.safetensors", own).class_sizes["red"] == 4
    with pytest.raises(FewshotError, match="made on another network: options .*'pool': 'flatten'.*give that one"):
        Classifier.load("own.safetensors", wrap_backbone(torch.nn.Flatten(), 3, 20, name="mine", pool="mean"))


def test_files_that_are_no_classifier_are_refused(place, network):
    Classifier.from_folder("examples", network).save("kept.safetensors")
    tensors, meta = read_safetensors("kept.safetensors", "", "", "", "")
    newer = f"version {VERSION + 1} .* reads up to version {VERSION}; install"
    for changes, message in [({"version": str(VERSION + 1)}, newer),
                             ({"format": "bank"}, "is not a classifier; make one"),
                             ({"about": meta["about"].replace("red", "rot")}, "does not match its checksum")]:
        save_tensors("changed.safetensors", tensors, meta | changes)
        with pytest.raises(FewshotError, match=message):
            Classifier.load("changed.safetensors")
    save_tensors("changed.safetensors", {"features": tensors["features"] + 1}, meta)
    with pytest.raises(FewshotError, match="does not match its checksum"):
        Classifier.load("changed.safetensors")
    (place / "cut.safetensors").write_bytes((place / "kept.safetensors").read_bytes()[:100])
    with pytest.raises(FewshotError, match="cut.safetensors is not a readable classifier"):
        Classifier.load("cut.safetensors")
    with pytest.raises(FewshotError, match="no classifier at lost; make one"):
        Classifier.load("lost")


def test_version_1_of_the_format_stays_readable(place, network):
    """What is written: tensors and metadata by name, with the images by class, file and pixels."""
    Classifier.from_folder("examples", network).save("kept.safetensors")
    tensors, meta = read_safetensors("kept.safetensors", "", "", "", "")
    about = json.loads(meta["about"])
    assert set(tensors) == {"features"} and tensors["features"].shape == (9, network.feature_dim)
    assert set(meta) == {"format", "version", "about", "sha256"} and meta["version"] == "1"
    assert set(about) == {"backbone", "image_size", "method", "parameters", "transforms", "examples"}
    assert about["parameters"]["temperature"] == 0.1 and about["backbone"]["weights_id"] == "random:3"
    assert [name for name, _, _ in about["examples"]] == ["blue"] * 2 + ["green"] * 3 + ["red"] * 4
    assert all(a[2] < b[2] for a, b in pairwise(about["examples"]) if a[0] == b[0])


def test_an_empty_classifier_has_a_file_too(place, network):
    Classifier(network).save("empty.safetensors")
    again = Classifier.load("empty.safetensors")
    again.add_class("red", "examples/red")
    assert again.class_sizes == {"red": 4} and Contents.read("empty.safetensors").examples == ()


def decisions_for(classifier, **changes):
    """Values as if chosen for `classifier` on episodes of 3 ways and 3 shots."""
    spec, network = classifier._contents.spec, classifier._contents.backbone
    about = {"method": spec.method, "parameters": spec.parameters, "transforms": spec.transforms, "ways": 3, "shots": 3,
             "dataset": "made", "episodes": 500, "seed": 7, "backbone": network["backbone"],
             "weights": network["weights_id"], **changes}
    return Decisions(coverage=0.9, threshold=0.1, slope=0.2, temperature=1 / 3, keep=0.95, unknown_below=-30,
                     chosen_on=about)


def test_decisions_live_in_the_file(place, network):
    classifier = Classifier.from_folder("examples", network)
    without, decisions = saved(classifier), decisions_for(classifier)
    classifier.remove_images(["red/3.png"])
    with pytest.warns(UserWarning, match="3-way 3-shot episodes, and here are 3 classes with 2 to 3 .* 3-way 2-shot"):
        classifier.decide_by(decisions)
    with pytest.warns(UserWarning, match="choose them anew"):
        assert Classifier.from_folder("examples", network, decisions=decisions).decisions == decisions
    classifier.add_images("red", "examples/red/3.png")  # what comes and goes leaves them
    assert saved(classifier) != without
    again = Classifier.load("probe.safetensors", network)
    assert again.decisions == decisions and saved(again, "again.safetensors") == saved(classifier)
    found, expected = again.predict("photos"), again.predict("photos", decisions=decisions)
    assert found.decided.sets.equal(expected.decided.sets) and found.decided.unknown.equal(expected.decided.unknown)
    assert found.decided.probabilities.equal(expected.decided.probabilities)
    assert found.notes[:-1] == expected.notes and found.notes[-1] == "These decisions are kept in the classifier."
    assert any("500 3-way 3-shot validation episodes of made, seed 7." in note for note in found.notes)
    assert again.predict("photos", decisions=0.5).decided.probabilities is None  # from the support
    again.decide_by(None)
    assert saved(again) == without  # of version 1, as ever


@pytest.mark.parametrize(("other", "value"), [
    ("method", "ridge"), ("parameters", {"temperature": 1.0}), ("transforms", ""), ("backbone", "resnet12"),
    ("weights", "random:4"), ("crops", "keep(7)")])
def test_decisions_of_another_classifier_are_refused(place, network, other, value):
    classifier = Classifier.from_folder("examples", network)
    before = saved(classifier)
    with pytest.raises(FewshotError, match=f"chosen with {other}=.*use the same, or choose them anew"):
        classifier.decide_by(decisions_for(classifier, **{other: value}))
    assert saved(classifier) == before and classifier.decisions is None


def test_decisions_of_an_older_version_of_the_method_fit(place, network):
    """A hyper-parameter that the method gained since has its default, and is not another choice."""
    classifier = Classifier.from_folder("examples", network, method="ridge")
    stored = dict(classifier._contents.spec.parameters)
    del stored["scale"]
    classifier.remove_images(["red/3.png", "green/2.png"])
    with pytest.warns(UserWarning, match="rates may not hold"):
        classifier.decide_by(decisions_for(classifier, parameters=stored))
    with pytest.raises(FewshotError, match="chosen with parameters="):
        classifier.decide_by(decisions_for(classifier, parameters={**stored, "scale": 3.0}))


# -- review and corrections --------------------------------------------------------------------------------------------


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_least_certain_come_first_and_corrections_come_back(place, network):
    classifier = Classifier.from_folder("examples", network)
    found = classifier.predict("photos")
    found.save("labelled")
    assert sorted(path.name for path in (place / "labelled").iterdir()) == [
        "corrections.csv", "predictions.csv", "review.html"]
    rows = rows_of("labelled/corrections.csv")
    certain = [float(row["probability"]) for row in rows]
    assert certain == sorted(certain) and tuple(rows[0]) == COLUMNS and len(rows) == 6
    page = Page((place / "labelled" / "review.html").read_text())
    shown = [int(item["data-row"]) for item in page.all("li") if "data-row" in item]
    assert [found.files[row] for row in shown] == [row["file"] for row in rows] and page.open == []
    with pytest.raises(FewshotError, match="corrects nothing: its column correction is empty"):
        classifier.correct("labelled/corrections.csv")
    rows[0]["correction"], rows[2]["correction"] = "green", "red"
    write("some.csv", rows)
    classifier.correct("some.csv")
    direct = Classifier.from_folder("examples", network)
    direct.correct({rows[0]["file"]: "green", rows[2]["file"]: "red"}, "photos")
    assert saved(classifier) == saved(direct) and len(classifier) == 11


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_corrections_of_other_images_are_refused(place, network):
    classifier = Classifier.from_folder("examples", network)
    classifier.predict("photos").save("labelled")
    before = saved(classifier)
    rows = [row | {"correction": "green"} for row in rows_of("labelled/corrections.csv")]
    write("some.csv", rows)
    (place / "photos").rename(place / "moved")
    with pytest.raises(FewshotError, match="6 of 6 images of the corrections cannot be read"):
        classifier.correct("some.csv")
    picture("red", 99).save("moved/red.png")
    with pytest.raises(FewshotError, match="1 images are not those that were labelled: red.png .*give images='FOLDER'"):
        classifier.correct("some.csv", images="moved")
    assert saved(classifier) == before
    picture("red", 10).save("moved/red.png")
    classifier.correct("some.csv", images="moved")
    assert classifier.class_sizes == {"blue": 2, "green": 9, "red": 4}
    for text, message in [("a,b\n1,2\n", "has columns a, b; expected file and correction"), ("", "corrects nothing")]:
        (place / "other.csv").write_text(text)
        with pytest.raises(FewshotError, match=message):
            classifier.correct("other.csv")
    with pytest.raises(FewshotError, match="cannot read the corrections lost.csv"):
        classifier.correct("lost.csv")


@needs_browser
def test_a_browser_picks_corrections_and_saves_them(place, network):
    name = 'a "b", <c>'
    classifier = Classifier.from_folder("examples", network)
    classifier.add_class(name, "photos/more/red.png")
    found = classifier.predict("photos")
    text = review_page(found, 0.9)
    assert escape(name) in text and "<c>" not in text
    first, second = (found.files[row] for row in found.least_certain[:2])
    state = browse(text, """
      const all = [...document.querySelectorAll("#together .card")], button = form.elements.save;
      const visible = () => all.filter(card => !card.hidden).length;
      const pick = (card, value) => {
        card.querySelector("select").value = value;
        card.querySelector("select").dispatchEvent(new Event("change", { bubbles: true }));
      };
      state.push(button.disabled, visible());
      pick(all[0], 'a "b", <c>'); pick(all[1], "green"); pick(all[2], "red"); pick(all[2], "");
      state.push(button.textContent, all.filter(card => card.classList.contains("corrected")).length);
      form.elements.predicted.value = "green"; form.dispatchEvent(new Event("change", { bubbles: true }));
      state.push(visible());
      let link; HTMLAnchorElement.prototype.click = function () { link = this; };
      form.requestSubmit();
      state.push(link.download, btoa(unescape(encodeURIComponent(csv()))), unsaved);""", place)
    assert state[:5] == ["true", "6", "Save 2 corrections", "2", str(found.predicted.count("green"))]
    assert state[5] == "corrections.csv" and state[7:] == ["false", "true"]
    (place / "picked.csv").write_bytes(base64.b64decode(state[6]))
    rows = rows_of("picked.csv")
    assert [(row["file"], row["correction"]) for row in rows] == [(first, name), (second, "green")]
    classifier.correct("picked.csv")
    assert classifier.class_sizes[name] + classifier.class_sizes["green"] >= 5


# -- commands ----------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["classifier", *map(str, arguments), "--quiet"])
    out, err = capsys.readouterr()
    return stop.value.code, " ".join((out + err).split())


def test_the_commands(place, capsys):
    save_weights(create_backbone("conv4", channels=3, image_size=20, seed=3, width=8), "w.safetensors")
    file, weights = "c.safetensors", ("--weights", "w.safetensors")
    assert run(capsys, "create", file, "--support", "examples", *weights)[0] == 0
    before = (place / file).read_bytes()
    code, told = run(capsys, "create", file, "--support", "examples", *weights)
    assert code == 2 and "c.safetensors exists; extend it with `fewshot classifier add`" in told
    code, told = run(capsys, "show", file, "--images")
    assert code == 0 and "backbone conv4" in told and "green: 3 green/0.png" in told and "temperature=0.1" in told
    code, told = run(capsys, "predict", file, "photos", "--out", "labelled", "--low", "0.9", *weights)
    assert code == 0 and "more/red.png" in told and "wrote labelled/review.html" in told
    rows = [row | {"correction": "red"} for row in rows_of("labelled/corrections.csv") if row["file"] == "red.png"]
    write("some.csv", rows)
    code, told = run(capsys, "correct", file, "some.csv", *weights)
    assert code == 0 and "wrote c.safetensors: 3 classes, 10 images (blue 2, green 3, red 5)" in told
    assert run(capsys, "add", file, "--new-class", "dark", "photos/more", *weights)[0] == 0
    code, told = run(capsys, "add", file, "--class", "gren", "photos/green.png", *weights)
    assert code == 2 and "did you mean 'green'" in told
    code, told = run(capsys, "add", file, "photos/green.png", *weights)
    assert code == 2 and "give either --class, one that there is, or --new-class" in told
    code, told = run(capsys, "remove", file, "--class", "dark", "--image", "photos/red.png")
    assert code == 0 and "9 images" in told and (place / file).read_bytes() == before
    for wrong, part in [(("remove", file), "give --class or --image"), (("show", "lost"), "no classifier at lost"),
                        (("predict", file, "photos", "--low", "2", *weights), "--low=2")]:
        code, told = run(capsys, *wrong)
        assert code == 2 and part in told


def test_decisions_from_a_shell(place, capsys):
    """Found on validation episodes, kept in the file, followed by predict."""
    pixels = create_backbone("pixels", image_size=28)
    embed(load_dataset("glyphs", "val"), pixels).save("val.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["decide", "--features", "val.safetensors", "--ways", "3", "--shots", "2", "--out", "d.json", "--quiet"])
    assert stop.value.code == 0 and "2-shot validation episodes of glyphs, seed 0" in capsys.readouterr().out
    for name in ("green", "red"):
        for file in sorted((place / "examples" / name).iterdir())[2:]:
            file.unlink()
    file, create = "c.safetensors", ("--support", "examples", "--backbone", "pixels")
    code, told = run(capsys, "create", file, *create, "--decisions", "d.json")
    assert code == 0 and "decisions of 500 3-way 2-shot validation episodes of glyphs, seed 0" in told and "anew" not in told
    held = (place / file).read_bytes()
    code, told = run(capsys, "show", file)
    assert code == 0 and "decisions temperature" in told and "3-way 2-shot validation episodes of glyphs" in told
    code, told = run(capsys, "predict", file, "photos", "--out", "labelled")
    assert code == 0 and "kept in the classifier" in told
    assert all(row["calibrated"] for row in rows_of("labelled/predictions.csv"))
    code, told = run(capsys, "predict", file, "photos", "--out", "labelled", "--coverage", "0.5")
    assert code == 0 and "50 % of the images; they come from the support" in told
    assert not any(row["calibrated"] for row in rows_of("labelled/predictions.csv"))
    assert run(capsys, "decisions", file, "--forget")[0] == 0 and (place / file).read_bytes() != held
    code, told = run(capsys, "decisions", file, "d.json")
    assert code == 0 and (place / file).read_bytes() == held
    assert run(capsys, "create", "other.safetensors", *create, "--method", "ridge")[0] == 0
    before = (place / "other.safetensors").read_bytes()
    code, told = run(capsys, "decisions", "other.safetensors", "d.json")
    assert code == 2 and "chosen with method=protonet, here it is ridge" in told
    assert (place / "other.safetensors").read_bytes() == before
    code, told = run(capsys, "decisions", file)
    assert code == 2 and "give either a file of `fewshot decide`, or --forget" in told


def test_a_command_names_the_option_that_helps(place, capsys, network):
    with torch.no_grad():
        next(network.parameters()).add_(1)
    Classifier.from_folder("examples", network).save("c.safetensors")
    code, told = run(capsys, "predict", "c.safetensors", "photos")
    assert code == 2 and "give --weights FILE, the file of its weights" in told
    assert run(capsys, "show", "c.safetensors")[0] == 0
