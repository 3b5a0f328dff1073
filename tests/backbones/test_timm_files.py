"""Models of timm from a file of their own or the hub."""

from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

from fewshot.backbones import convert_official, create_backbone, load_official
from fewshot.core.errors import FewshotError

NAME = "test_resnet"  # timm's own small model for tests


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=7).eval()


def assert_same_features(made, model):
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model.forward_head(model.forward_features(made.transform(images)), pre_logits=True)
        torch.testing.assert_close(made(made.transform(images)), wanted, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_timm_is_converted(tmp_path, model):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    wrapped = {f"module.{name}": x for name, x in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        assert_same_features(load_official(tmp_path / name, f"timm/{NAME}", dataset="ImageNet-1k"), model)
    about = convert_official(tmp_path / "b.pth", tmp_path / "c.safetensors", f"timm/{NAME}", dataset="ImageNet-1k")
    assert about["layout"] == "timm" and about["left_out"] == ["fc"] and about["file"] == "b.pth"
    made = create_backbone(f"timm/{NAME}", weights=tmp_path / "c.safetensors")
    assert_same_features(made, model)
    assert made.pretrained_on == "ImageNet-1k" and not made.weights_id.startswith("random")
    with pytest.raises(FewshotError, match="a.safetensors has no fewshot metadata; weights of timm .* `fewshot convert`"):
        create_backbone(f"timm/{NAME}", weights=tmp_path / "a.safetensors")


def test_what_does_not_fit_is_refused(tmp_path, model):
    """timm itself leaves random weights in a model whose tensors it does not find."""
    state = model.state_dict()
    for change, message in (({"layer1.0.conv1.weight": None}, "1 missing .layer1.0.conv1.weight"),
                            ({"layer1.0.conv1.weight": torch.zeros(2, 2, 1, 1)}, "1 shape differs .layer1.0.conv1.weight"),
                            ({"other.weight": torch.zeros(2)}, "1 unexpected .other.weight")):
        changed = {name: x for name, x in {**state, **change}.items() if x is not None}
        safetensors.torch.save_file(changed, tmp_path / "x.safetensors")
        with pytest.raises(FewshotError, match=f"x.safetensors does not fit timm/{NAME}: {message}"):
            load_official(tmp_path / "x.safetensors", f"timm/{NAME}")
    with pytest.raises(FewshotError, match="layout='rfs' with 'timm/"):
        load_official(tmp_path / "x.safetensors", f"timm/{NAME}", "rfs")
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    with pytest.raises(FewshotError, match="not a readable weights file"):
        load_official(tmp_path / "x.safetensors", f"timm/{NAME}")


def test_a_model_of_the_hub_is_found_where_it_was_fetched(tmp_path, model, monkeypatch):
    stored = tmp_path / "models--me--tiny"
    snapshot = stored / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123abc")
    config = {"architecture": NAME, "num_classes": 7, "num_features": model.num_features, "pretrained_cfg": {
        "input_size": [3, 160, 160], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic",
        "num_classes": 7, "classifier": "fc", "first_conv": "conv1.0"}}
    (snapshot / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    made = create_backbone("timm/hf-hub:me/tiny", weights="pretrained")
    assert_same_features(made, model)
    assert made.pretrained_on == "unknown" and made.transform.mean == (0.5, 0.5, 0.5)
    with pytest.raises(FewshotError, match="timm cannot make 'hf-hub:me/other'"):
        create_backbone("timm/hf-hub:me/other", weights="pretrained")
