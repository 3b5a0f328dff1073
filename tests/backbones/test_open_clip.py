"""Models of open_clip as backbones, and their text towers. Small and random: nothing is fetched."""

from __future__ import annotations

import logging

import open_clip
import pytest
import safetensors.torch
import torch

from fewshot.backbones import check_backbone, convert_official, create_backbone, input_for, save_weights
from fewshot.backbones.open_clip_models import pairs_behind
from fewshot.backbones.two_towers import encode_texts
from fewshot.core.errors import FewshotError
from tests.backbones.tiny_clip import CONFIGS, add_to_open_clip

LINEAR = [name for name in CONFIGS if name != "tiny-sigmoid"]
SENTENCES = ["a photo of a cat.", "two dogs", "a photo of a cat."]


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    add_to_open_clip(tmp_path_factory.mktemp("configs"))


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def own_vectors(net, x):
    """What open_clip's model makes of images, not of unit length."""
    with torch.no_grad():
        return net.encode_image(x, normalize=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_the_vectors_of_the_model(name):
    before = torch.get_rng_state()
    backbone = create_backbone(f"open_clip/{name}", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    x = backbone.transform(images())
    with torch.no_grad():
        features = backbone(x)
    dim = CONFIGS[name]["embed_dim"]
    assert features.shape == (3, dim) and backbone.feature_dim == dim and not backbone.net.training
    torch.testing.assert_close(features, own_vectors(backbone.net, x), rtol=0, atol=0)
    assert (features[0] - features[1]).abs().max() > 0
    assert backbone.weights_id == "random:3" and backbone.pretrained_on is None and backbone.projection is None
    assert torch.equal(create_backbone(f"open_clip/{name}", seed=3)(x), backbone(x))
    assert create_backbone(f"open_clip/{name}", reduce="average")(x).shape[0] == 3


@pytest.mark.parametrize("name", LINEAR)
def test_features_before_the_projection_and_the_projection(name):
    """The matrix takes them to the vectors of the model, its last row being the bias."""
    backbone = create_backbone(f"open_clip/{name}", pre_projection=True)
    with torch.no_grad():  # a bias of zero would hide a wrong row
        for layer in backbone.net.visual.modules():
            if isinstance(layer, torch.nn.Linear) and layer.bias is not None:
                layer.bias.normal_(generator=torch.Generator().manual_seed(1))
    x = backbone.transform(images())
    with torch.no_grad():
        features = backbone(x)
    matrix = backbone.projection
    assert matrix.shape == (backbone.feature_dim + 1, 12) and features.shape == (3, backbone.feature_dim)
    torch.testing.assert_close(features @ matrix[:-1] + matrix[-1], own_vectors(backbone.net, x), rtol=1e-5, atol=1e-6)
    assert (matrix[-1].abs().max() > 0) == (name in ("tiny-resnet", "tiny-timm"))


def test_a_tower_without_a_linear_map_has_no_features_before_it():
    with pytest.raises(FewshotError, match="does not end in a linear map; leave pre_projection out"):
        create_backbone("open_clip/tiny-sigmoid", pre_projection=True)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-sigmoid"])
def test_sentences_become_unit_vectors(name):
    backbone = create_backbone(f"open_clip/{name}").train()
    vectors = encode_texts(backbone, SENTENCES)
    assert backbone.training and vectors.shape == (3, CONFIGS[name]["embed_dim"]) and not vectors.is_inference()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2]) and (vectors[0] - vectors[1]).abs().max() > 1e-3
    with torch.no_grad():
        wanted = backbone.eval().net.encode_text(open_clip.get_tokenizer(name)(SENTENCES), normalize=True)
    torch.testing.assert_close(vectors, wanted)
    many = [f"number {number}" for number in range(300)]
    torch.testing.assert_close(encode_texts(backbone, many)[-1:], encode_texts(backbone, many[-1:]), atol=1e-6, rtol=0)
    long = encode_texts(backbone, ["word " * 400])
    assert torch.isfinite(long).all()


def test_scores_are_those_of_the_model():
    """scale cos + bias, as the model itself computes them, for both kinds."""
    for name, bias in (("tiny-vit", 0), ("tiny-sigmoid", -10)):
        backbone = create_backbone(f"open_clip/{name}")
        x, tokens = backbone.transform(images()), open_clip.get_tokenizer(name)(SENTENCES)
        with torch.no_grad():
            wanted = backbone.net.get_logits(x, tokens)[0]
            features = torch.nn.functional.normalize(backbone(x), dim=1)
        assert backbone.logit_bias == bias
        scores = backbone.logit_scale * features @ encode_texts(backbone, SENTENCES).T + backbone.logit_bias
        torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


def test_sentences_that_cannot_be_encoded():
    backbone = create_backbone("open_clip/tiny-vit")
    for sentences, message in (([], "sentences=0"), (["a", " "], "sentence 1 is ' '"), ("a cat", "pass a list"),
                               (["a", 3], "sentence 1 is 3")):
        with pytest.raises(FewshotError, match=message):
            encode_texts(backbone, sentences)
    with pytest.raises(FewshotError, match="pixels has no text tower; choose a backbone that has one: open_clip/"):
        encode_texts(create_backbone("pixels"), ["a"])
    with pytest.raises(FewshotError, match="makes token 49407, and its text tower knows 100; .* vocab_size"):
        encode_texts(create_backbone("open_clip/tiny-words"), ["a"])
    with torch.no_grad():
        backbone.net.text_projection[0, 0] = float("nan")
    with pytest.raises(FewshotError, match="NaN or infinity for 'a cat'"):
        encode_texts(backbone, ["a cat"])


@pytest.mark.parametrize(("name", "message"), [
    ("open_clip/ViT-B32", "unknown backbone 'open_clip/ViT-B32'; did you mean 'open_clip/ViT-B-32'"),
    ("open_clip/xyzzy", "open_clip.list_models"),
    ("open_clip/ViT-B-32:laion2b", "unknown weights of open_clip/ViT-B-32 'laion2b'; did you mean 'laion2b_e16'"),
    ("open_clip/tiny-vit:openai", "unknown weights of open_clip/tiny-vit 'openai'; known: none")])
def test_unknown_names(name, message):
    with pytest.raises(FewshotError, match=message):
        check_backbone(name)


def test_arguments_that_do_not_fit():
    for keywords, message in (({"channels": 1}, "takes 3; keep channels=3"), ({"nonsense": 1}, "open_clip cannot make"),
                              ({"weights": "pretrained"}, "neither a file nor one of those of open_clip/tiny-vit: random"),
                              ({"image_size": 4}, "open_clip cannot make 'tiny-vit' with image_size=4")):
        with pytest.raises(FewshotError, match=message):
            create_backbone("open_clip/tiny-vit", **keywords)
    assert input_for("open_clip/tiny-vit", torch.zeros(2, 1, 28, 28)) == {"channels": 3, "image_size": None}
    assert create_backbone("open_clip/tiny-vit", image_size=40).input_size == 40


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FewshotError, match=r"backbone open_clip/ViT-B-32: .* pip install 'fewshot\[clip\]'"):
        check_backbone("open_clip/ViT-B-32")


def test_a_tag_decides_the_images_and_the_activations(monkeypatch):
    """Without its weights, too, as they may come from a file."""
    tags = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "interpolation": "bilinear", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: tags)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["laion2b_x"])
    made = create_backbone("open_clip/tiny-vit:laion2b_x", weights="random")
    assert (made.transform.mean, made.transform.std, made.transform.interpolation) == \
        ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear")
    assert type(made.net.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert made.pretrained_on is None and check_backbone("open_clip/tiny-vit:laion2b_x")[2] == "pretrained"


@pytest.mark.parametrize(("model", "data"), [
    ("ViT-B-32:laion2b_s34b_b79k", "LAION-2B"), ("ViT-B-32", None), ("ViT-L-14:openai", "WIT-400M"),
    ("ViT-B-16:datacomp_xl_s13b_b90k", "DataComp-1B"), ("ViT-B-16-SigLIP:webli", "WebLI"),
    ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "LAION-2B"), ("hf-hub:me/mine", "me/mine"), ("RN50:other", "other")])
def test_what_a_tag_says_about_the_data(model, data):
    assert pairs_behind(model) == data


def test_every_tag_of_open_clip_names_its_data():
    unnamed = {tag for model, tag in open_clip.list_pretrained() if pairs_behind(f"{model}:{tag}") == tag}
    assert unnamed <= {"v1", "v2", "meta", "mrl", "dfndr2b", "laion2b"}, "give the new ones their names"


def test_weights_in_files(tmp_path):
    """A checkpoint of open_clip is converted, one of `save_weights` is read; both towers come from it."""
    source = create_backbone("open_clip/tiny-vit", seed=5)
    plain = {name: value.contiguous() for name, value in source.net.state_dict().items()}
    state = {f"module.{name}": value for name, value in plain.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    safetensors.torch.save_file(plain, tmp_path / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        about = convert_official(tmp_path / name, tmp_path / "c.safetensors", "open_clip/tiny-vit", dataset="LAION-400M")
        assert about["layout"] == "open_clip" and about["file"] == name
        made = create_backbone("open_clip/tiny-vit", weights=tmp_path / "c.safetensors")
        assert made.pretrained_on == "LAION-400M" and not made.weights_id.startswith("random")
        x = made.transform(images())
        assert torch.equal(made(x), source(x))
        assert torch.equal(encode_texts(made, SENTENCES), encode_texts(source, SENTENCES))
    save_weights(source, tmp_path / "d.safetensors")
    before = create_backbone("open_clip/tiny-vit", weights=tmp_path / "d.safetensors", pre_projection=True)
    torch.testing.assert_close(before(x) @ before.projection[:-1], source(x))
    for backbone, message in (("open_clip/tiny-resnet", "a.pt does not fit open_clip/tiny-resnet: .* Name the model"),
                              ("open_clip/nothing", "unknown backbone")):
        with pytest.raises(FewshotError, match=message):
            convert_official(tmp_path / "a.pt", tmp_path / "e.safetensors", backbone)
    with pytest.raises(FewshotError, match="layout='rfs' with 'open_clip/"):
        convert_official(tmp_path / "a.pt", tmp_path / "e.safetensors", "open_clip/tiny-vit", "rfs")
    with pytest.raises(FewshotError, match="Python object"):
        torch.save({"state_dict": state, "code": logging.Formatter()}, tmp_path / "a.pt")
        convert_official(tmp_path / "a.pt", tmp_path / "e.safetensors", "open_clip/tiny-vit")
    assert not (tmp_path / "e.safetensors").exists()


def test_logging_is_left_alone(caplog):
    """open_clip warns of random weights through the root logger, which sets up logging for the whole program."""
    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    create_backbone("open_clip/tiny-vit")
    assert root.handlers == handlers and root.filters == filters and not caplog.records
