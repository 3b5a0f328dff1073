"""Sentences of classes, and the vector of each class that they make."""

from __future__ import annotations

import json

import pytest
import torch

from fewshot.backbones import create_backbone
from fewshot.backbones.two_towers import encode_texts
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features.class_prompts import class_prompts, class_texts, class_vectors, read_templates
from tests.backbones.tiny_clip import add_to_open_clip

NAMES = ["tiger_cat", "sea lion"]


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    add_to_open_clip(tmp_path_factory.mktemp("configs"))


def test_templates_by_name_from_a_file_and_alone(tmp_path):
    every, best = read_templates("imagenet"), read_templates("imagenet7")
    assert len(every) == 80 and len(set(every)) == 80 and len(best) == 7 and "itap of a {}." in best
    assert all(template.count("{}") == 1 for template in (*every, *best))
    (tmp_path / "mine.txt").write_text("a photo of a {}.\n  the {}, a kind of {}\n")
    assert read_templates(tmp_path / "mine.txt") == ("a photo of a {}.", "the {}, a kind of {}")
    assert read_templates("{}") == ("{}",) and read_templates(["a {}", "b {}"]) == ("a {}", "b {}")


def test_templates_are_those_that_others_publish(shared_data):
    listed = json.loads((shared_data / "prompts/en_zeroshot_classification_templates.json").read_text())["imagenet1k"]
    assert {template.replace("{c}", "{}") for template in listed} == set(read_templates("imagenet"))


def test_sentences_of_templates_and_descriptions(tmp_path):
    told = {"tiger_cat": ["striped", "has whiskers "], "sea lion": ["swims"], "other": ["is not asked for"]}
    (tmp_path / "told.json").write_text(json.dumps(told))
    assert class_prompts(NAMES, ["a {}", "{}!"]) == ((("a tiger cat", "tiger cat!"), ("a sea lion", "sea lion!")),
                                                     ("a {}", "{}!"))
    assert class_prompts(NAMES, None, tmp_path / "told.json") == ((("striped", "has whiskers"), ("swims",)), ())
    assert class_prompts(NAMES, "a {}", told)[0][0] == ("a tiger cat", "striped", "has whiskers")


@pytest.mark.parametrize(("names", "templates", "descriptions", "message"), [
    (NAMES, "a photo", None, "'a photo' is neither a file, nor one of imagenet, imagenet7, nor a template with {}"),
    (NAMES, ["a {}", "a photo"], None, "template 2: 'a photo' has no {} for the class name"),
    (NAMES, ["a {}", ""], None, "template 2: '' has no {}"),
    (NAMES, [], None, "has no template; give one a line"),
    (["tiger cat", "tiger_cat"], "a {}", None, "2 classes are called 'tiger cat'"),
    (["a", " "], "a {}", None, "a class has no name"),
    (NAMES, None, None, "neither templates nor descriptions given"),
    (NAMES, None, {"tiger_cats": ["a"], "sea lion": ["b"]}, "unknown class 'tiger_cat'; did you mean 'tiger_cats'?; 1 of 2"),
    (NAMES, None, {}, "no class has a description; 2 of 2"),
    (NAMES, None, ["a"], "descriptions holds a list; expected"),
    (NAMES, None, {"tiger_cat": "striped"}, "class 'tiger_cat' has 'striped'; give it a list of sentences"),
    (NAMES, None, {"tiger_cat": []}, "at least one and none empty"),
    (NAMES, None, {"tiger_cat": ["a", " "]}, "at least one and none empty"),
    (NAMES, None, "no/such.json", "no/such.json cannot be read as text")])
def test_what_is_refused(names, templates, descriptions, message):
    with pytest.raises(FewshotError) as refused:
        class_prompts(names, templates, descriptions)
    assert message in str(refused.value)


def test_files_that_are_refused(tmp_path):
    for name, content, message in (("a.txt", b"", "a.txt has no template"), ("b.txt", b"a {}\n\na {}", "b.txt, line 2: ''"),
                                   ("c.txt", b"\xff\xfe{}\xff", "c.txt cannot be read as text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FewshotError, match=message):
            class_prompts(NAMES, tmp_path / name)
    for content, message in (("{", "is not JSON"), ("[1]", "holds a list"), ("[" * 100_000, "is not JSON")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(FewshotError, match=message):
            class_prompts(NAMES, None, tmp_path / "a.json")


def test_a_class_is_the_unit_mean_of_its_unit_sentences():
    table = {"a": [3.0, 0.0], "b": [0.0, 5.0], "c": [-2.0, 0.0]}
    asked = []

    def encode(sentences):
        asked.append(sentences)
        return torch.tensor([table[sentence] for sentence in sentences])

    vectors, each = class_vectors(encode, (("a", "b", "a"), ("b",), ("c",)))
    assert asked == [["a", "b", "c"]]
    torch.testing.assert_close(each, torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [-1, 0]]))
    torch.testing.assert_close(vectors, torch.tensor([[2 / 5**0.5, 1 / 5**0.5], [0, 1], [-1, 0]]))
    with pytest.raises(FewshotError, match="the vectors of 'a' and of the other sentences of its class cancel"):
        class_vectors(encode, (("b",), ("a", "c")))


def test_texts_of_a_model_have_its_scale_bias_and_projection():
    for name, bias in (("tiny-vit", 0), ("tiny-sigmoid", -10)):
        model = create_backbone(f"open_clip/{name}")
        texts = class_texts(model, NAMES, ["a {}", "the {}"])
        wanted = encode_texts(model, ["a tiger cat", "the tiger cat"]).mean(0)
        torch.testing.assert_close(texts.vectors[0], wanted / wanted.norm())
        assert texts.vectors.norm(dim=1).sub(1).abs().max() < 1e-6 and texts.prompt_vectors.shape[0] == 4
        assert (texts.logit_scale, texts.logit_bias) == (model.logit_scale, bias)
        assert (texts.model, texts.templates, texts.projection) == (f"open_clip/{name}", ("a {}", "the {}"), None)
    before = create_backbone("open_clip/tiny-vit", pre_projection=True)
    assert torch.equal(class_texts(before, NAMES, "a {}").projection, before.projection)
    with pytest.raises(FewshotError, match="reduce='average' makes features of a map"):
        class_texts(create_backbone("open_clip/tiny-vit", reduce="average"), NAMES, "a {}")
    with pytest.raises(FewshotError, match="conv4 has no text tower"):
        class_texts(create_backbone("conv4"), NAMES, "a {}")


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_the_command_writes_features_and_texts_into_one_bank(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ("embed", "--dataset", "glyphs", "--split", "val", "--backbone", "open_clip/tiny-vit", "--device", "cpu")
    assert run(*asked, "--templates", "the letter {}", "--out", "a.safetensors") == 0
    assert "and texts of 54 classes from 54 sentences" in capsys.readouterr().out
    bank = FeatureBank.load("a.safetensors")
    assert bank.texts.prompts[0] == (f"the letter {bank.class_names[0]}",) and bank.texts.vectors.shape == (54, 12)
    result = evaluate(Run(method="zero_shot", ways=5, shots=1, queries=5, episodes=50), bank)
    assert 0.05 < result.accuracy.mean < 0.4  # towers that were never trained: chance is 0.2
    (tmp_path / "told.json").write_text(json.dumps({name: [f"{name} {i}" for i in range(3)] for name in bank.class_names}))
    assert run(*asked, "--descriptions", "told.json", "--out", "b.safetensors") == 0
    assert FeatureBank.load("b.safetensors").texts.prompt_vectors.shape == (162, 12)
    capsys.readouterr()
    for wrong, message in ((("--templates", "the letter"), "neither a file"),
                           (("--descriptions", "no.json"), "cannot be read"),
                           (("--templates", "a {}", "--crops", "keep(2)"), "no texts of that length"),
                           (("--templates", "a {}", "--backbone", "pixels"), "pixels has no text tower")):
        assert run(*asked, *wrong, "--out", "c.safetensors") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()
