"""Banks validate once, and a saved bank is whole or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.banks import FeatureBank, ImageBank
from fewshot.errors import FewshotError


def bank(**changes):
    return FeatureBank(**{"features": torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
                          "labels": [0, 0, 1, 1, 2, 2], "class_names": ("a", "b", "c"), "name": "toy", "split": "test",
                          "provenance": {"backbone": "none"}, **changes})


def test_takes_arrays_and_tensors():
    made = FeatureBank(features=np.zeros((4, 2), np.float32), labels=np.array([0, 1, 0, 1], np.int32))
    assert made.labels.dtype == torch.int64 and made.class_names == ("class 0", "class 1")
    assert made.take(torch.tensor([[0, 1], [2, 3]])).shape == (2, 2, 2)
    assert made.class_sizes().tolist() == [2, 2]


@pytest.mark.parametrize(("changes", "message"), [
    ({"features": torch.zeros(6)}, r"\[M, D\]"), ({"features": torch.zeros(6, 3, dtype=torch.int64)}, "floating point"),
    ({"features": torch.tensor([[1.0], [float("inf")]] * 3)}, "3 feature rows .* row 1"),
    ({"labels": [0, 1]}, "one label per item"), ({"labels": [0.0] * 6}, "integers"),
    ({"labels": [-1, 0, 0, 1, 1, 2]}, "0 or more"), ({"class_names": ("a",)}, "1 class names"),
])
def test_wrong_features_are_named(changes, message):
    with pytest.raises(FewshotError, match=message):
        bank(**changes)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
                                    torch.zeros(2, 4, 4, dtype=torch.uint8)])
def test_images_are_uint8_with_one_or_three_channels(images):
    with pytest.raises(FewshotError, match="uint8"):
        ImageBank(images, [0, 1])


def test_save_and_load(tmp_path):
    saved = bank()
    loaded = FeatureBank.load(saved.save(tmp_path / "deep" / "bank.safetensors"))
    assert torch.equal(loaded.features, saved.features) and torch.equal(loaded.labels, saved.labels)
    assert (loaded.class_names, loaded.name, loaded.split, loaded.provenance) == (
        saved.class_names, saved.name, saved.split, saved.provenance)
    assert loaded.content_hash == saved.content_hash
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = bank().save(tmp_path / "bank.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[:-5]
    elif damage == "flip":
        content[-1] ^= 0xFF
    else:
        content = bytearray(b"hello")
    path.write_bytes(content)
    with pytest.raises(FewshotError, match="embed again"):
        FeatureBank.load(path)


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FewshotError, match="fewshot embed"):
        FeatureBank.load(tmp_path / "none.safetensors")


def test_identity_ignores_features_and_content_does_not():
    a, b = bank(), bank(features=torch.zeros(6, 3))
    assert a.identity == b.identity and a.content_hash != b.content_hash
    assert bank(split="val").identity != a.identity and bank(labels=[0, 0, 0, 1, 2, 2]).identity != a.identity


def test_images_content_hash_sees_every_pixel():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    changed = images.clone()
    changed[1, 0, 3, 3] = 1
    assert ImageBank(images, [0, 1]).content_hash != ImageBank(changed, [0, 1]).content_hash
