"""Banks validate once, and a saved bank is whole or refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data import bank_files
from fewshot.data.banks import FeatureBank, ImageBank, concatenate


def bank(**changes):
    return FeatureBank(**{"features": torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
                          "labels": [0, 0, 1, 1, 2, 2], "class_names": ("a", "b", "c"), "name": "toy", "split": "test",
                          "provenance": {"backbone": "none"}, **changes})


def test_takes_arrays_and_tensors():
    made = FeatureBank(features=np.zeros((4, 2), np.float32), labels=np.array([0, 1, 0, 1], np.int32))
    assert made.labels.dtype == torch.int64 and made.class_names == ("class 0", "class 1")
    assert made.take(torch.tensor([[0, 1], [2, 3]])).shape == (2, 2, 2)
    assert made.class_sizes().tolist() == [2, 2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


AS_THEY_COME = {"reversed": lambda x: x[::-1].copy()[::-1], "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder("S")),
                "read-only": read_only, "data frame": lambda x: pd.DataFrame(x) if x.ndim == 2 else pd.Series(x),
                "nullable": lambda x: (pd.DataFrame(x) if x.ndim == 2 else pd.Series(x)).convert_dtypes(),
                "rows": lambda x: list(torch.from_numpy(x))}


@pytest.mark.parametrize("form", AS_THEY_COME)
def test_arrays_are_taken_as_they_come(form, tmp_path):
    features, labels = np.arange(8, dtype=np.float32).reshape(4, 2) + 0.5, np.array([2, 0, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = FeatureBank(AS_THEY_COME[form](features), AS_THEY_COME[form](labels))
    assert torch.equal(made.features.float(), torch.from_numpy(features)) and made.labels.tolist() == [2, 0, 1, 0]
    assert len(FeatureBank.load(made.save(tmp_path / "bank.safetensors"))) == 4


def test_images_with_axes_that_run_backwards():
    images = np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4)
    made = ImageBank(images[:, ::-1], [0, 1])
    assert torch.equal(made.images, torch.from_numpy(images[:, ::-1].copy()))
    assert made.content_hash == ImageBank(images[:, ::-1].copy(), [0, 1]).content_hash
    with pytest.raises(FewshotError, match="images cannot be made an array"):
        ImageBank([np.zeros((1, 4, 4), np.uint8), np.zeros((1, 5, 5), np.uint8)], [0, 1])


def test_labels_that_are_names():
    made = FeatureBank(np.zeros((4, 2)), ["dog", "cat", "dog", "emu"])
    assert made.class_names == ("cat", "dog", "emu") and made.labels.tolist() == [1, 0, 1, 2]
    ordered = FeatureBank(np.zeros((2, 2)), np.array(["dog", "cat"], object), class_names=("emu", "dog", "cat"))
    assert ordered.class_names == ("emu", "dog", "cat") and ordered.labels.tolist() == [1, 2]
    with pytest.raises(FewshotError, match="unknown label 'dgo'; did you mean 'dog'.*class_names must have"):
        FeatureBank(np.zeros((1, 2)), ["dgo"], class_names=("dog", "cat"))


@pytest.mark.parametrize("features", [[["a", 1.0]], [[1.0], [1.0, 2.0]], pd.DataFrame({"x": [1.0, None], "y": ["a", "b"]}),
                                      np.array([[1 + 2j]])])
def test_what_are_no_numbers_is_named(features):
    with pytest.raises(FewshotError, match="^features "):
        FeatureBank(features, [0] * len(features))


def test_labels_are_ids_and_cost_follows_the_items(tmp_path):
    """Were anything counted up to the largest id, this would ask for exabytes."""
    largest = 2**60
    made = bank(labels=[largest, 7, 7, largest, 0, 7], class_names=None)
    assert made.classes.tolist() == [0, 7, largest] and made.class_sizes().tolist() == [1, 3, 2]
    assert made.class_names[largest] == f"class {largest}" and len(made.class_names) == largest + 1
    loaded = FeatureBank.load(made.save(tmp_path / "bank.safetensors"))
    assert loaded.identity == made.identity and loaded.class_names == made.class_names
    part = FeatureBank(made.features[1:3], made.labels[1:3], made.class_names, made.name, made.split)
    assert FeatureBank.load(part.save(tmp_path / "part.safetensors")).class_names[largest] == f"class {largest}"
    with pytest.raises(IndexError):
        made.class_names[largest + 1]
    with pytest.raises(FewshotError, match="leave class_names out"):
        bank(labels=made.labels)


def test_copies_are_counted():
    features = torch.tensor([[1.0, 0], [1, 0], [2, 0], [1, 0], [3, 0], [3, 0]])
    assert bank(features=features).repeated == (2, 3), "rows 1 and 5 inside a class, rows 0, 1 and 3 in two"
    assert bank().repeated == (0, 0) and bank(features=features.bfloat16()).repeated == (2, 3)
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    images[3] = images[2]
    assert ImageBank(images, [0, 0, 1, 1, 2, 2]).repeated == (1, 0)
    assert ImageBank(images, [0, 0, 1, 2, 2, 2]).repeated == (0, 2)
    assert ImageBank(images, [0, 0, 1, 2, 2, 2]).counted == "3 classes, 6 images, 1 to 3 each"
    assert ImageBank(images, [0] * 6).brightness == pytest.approx((0 + 1 + 2 + 2 + 4 + 5) / 6 / 255)


def test_names_of_labels_without_items_are_kept():
    made = bank(class_names=tuple("abcdef"), labels=[0, 0, 4, 4, 4, 0])
    assert made.classes.tolist() == [0, 4] and made.class_sizes().tolist() == [3, 3] and len(made.class_names) == 6


def test_the_identity_of_dense_labels_is_what_it_was():
    """Keys of stored results depend on it."""
    assert bank().identity == "e4b1f981f156146b5616dd2977e58c6f1b7d59e1dd0c8bd2f97fef3d0459491b"
    assert bank(class_names=None).identity == "6c06dd2d5e6e85048a4063ee32a8bab72bf8fa10b6e1a2919a609929a4f4a8a3"


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


# -- files larger than memory ---------------------------------------------------------------------------------------


def test_a_mapped_bank_is_the_same_bank(tmp_path):
    saved = bank()
    path = saved.save(tmp_path / "bank.safetensors")
    loaded = FeatureBank.load(path, mmap=True)
    rows = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(loaded.take(rows), saved.take(rows)) and torch.equal(loaded.labels, saved.labels)
    assert (loaded.identity, loaded.content_hash) == (saved.identity, saved.content_hash)
    sent = pickle.dumps(loaded)
    assert len(sent) < 1000 and torch.equal(pickle.loads(sent).features, saved.features), "the file is mapped again"
    assert torch.equal(pickle.loads(pickle.dumps(saved)).features, saved.features)


def test_pieces_make_the_same_file(tmp_path):
    saved = bank()
    whole = saved.save(tmp_path / "whole.safetensors")
    fields = {"labels": saved.labels, "class_names": saved.class_names, "name": "toy", "split": "test",
              "provenance": saved.provenance}
    pieces = FeatureBank.save_pieces(tmp_path / "pieces.safetensors", saved.features.split([1, 3, 2]), 3, **fields)
    assert pieces.read_bytes() == whole.read_bytes()
    for wrong, message in ((saved.features[:4], "4 rows of features for 6 labels"),
                           (torch.zeros(6, 2), r"expected .*\[m, 3\]"),
                           (torch.full((6, 3), float("nan")), "6 feature rows hold NaN")):
        with pytest.raises(FewshotError, match=message):
            FeatureBank.save_pieces(tmp_path / "wrong.safetensors", [wrong], 3, **fields)
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left of those"


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage", "empty"])
def test_damaged_mapped_files_are_refused(tmp_path, damage):
    path = bank().save(tmp_path / "bank.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes({"truncate": content[:-5], "flip": content, "garbage": b"hello, this is no bank", "empty": b""}[damage])
    with pytest.raises(FewshotError, match="embed again"):
        FeatureBank.load(path, mmap=True)


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("fewshot.data.bank_files.MAP_BYTES", 100)
    expected = bank().content_hash
    path, read = bank().save(tmp_path / "bank.safetensors"), []
    hashed = bank_files.content_hash
    monkeypatch.setattr("fewshot.data.bank_files.content_hash", lambda *given: read.append(1) or hashed(*given))
    assert FeatureBank.load(path).content_hash == expected and not read, "save knows what it wrote"
    seal = path.with_name("bank.safetensors.checked")
    seal.unlink()
    for _ in range(2):
        FeatureBank.load(path)
    assert len(read) == 1, "then it is vouched for"
    os.utime(path)
    FeatureBank.load(path)
    assert len(read) == 2, "touched: read again"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FewshotError, match="does not match its checksum"):
        FeatureBank.load(path)
    seal.write_text("garbage")
    with pytest.raises(FewshotError, match="does not match its checksum"):
        FeatureBank.load(path)


LIMITED = """
import resource, sys, torch
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
torch.set_num_threads(1)
def memory(kind):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(kind))
evaluate(Run(episodes=50), FeatureBank(torch.rand(400, 640), torch.arange(400) % 20))  # all code is loaded
limit = memory("VmData") + (120 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
mapped = {"yes": True, "no": False}[sys.argv[2]]
bank = FeatureBank.load(sys.argv[1], mmap=mapped)
print(evaluate(Run(episodes=200), bank).accuracy.n, len(bank))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mapped", ["yes", "no"])
def test_a_bank_larger_than_the_memory_allowed(tmp_path, mapped):
    """400 MB of features with 120 MB of memory: checked, hashed and evaluated from the file, and not otherwise."""
    pieces = (torch.rand(5_000, 640, generator=torch.Generator().manual_seed(i)) for i in range(32))
    path = FeatureBank.save_pieces(tmp_path / "bank.safetensors", pieces, 640, labels=torch.arange(160_000) % 100)
    path.with_name(f"{path.name}.checked").unlink()
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path), mapped], capture_output=True, text=True)
    if mapped == "yes":
        assert done.stdout.split() == ["200", "160000"], done.stderr
    else:
        assert done.returncode != 0 and "emory" in done.stderr


def test_lengths_are_those_of_gathered_rows(monkeypatch):
    """To the last bit: an evaluation must not depend on whether a bank has them ready."""
    features = torch.randn(300, 640, generator=torch.Generator().manual_seed(0))
    bank = FeatureBank(features, torch.arange(300) % 5)
    rows = torch.randint(0, 300, (7, 11), generator=torch.Generator().manual_seed(1))
    assert torch.equal(bank.lengths[rows], torch.linalg.vector_norm(bank.take(rows), dim=-1))
    monkeypatch.setattr("fewshot.data.bank_files.MAP_BYTES", 1000)
    assert FeatureBank(features, torch.arange(300) % 5).lengths is None, "a few episodes of a large file do not read all"


def test_features_from_a_file_have_a_title_that_is_no_part_of_what_they_are(tmp_path):
    made = {name: FeatureBank(torch.eye(4), [0, 0, 1, 1], name=name) for name in ("custom", "folder", "flowers")}
    titles = {name: FeatureBank.load(bank.save(tmp_path / "mine.safetensors")).title for name, bank in made.items()}
    assert titles == {"custom": "mine", "folder": "mine", "flowers": "flowers"}
    of_set = dataclasses.replace(made["flowers"], provenance={"dataset": "flowers"})
    assert FeatureBank.load(of_set.save(tmp_path / "of_set.safetensors")).shown_name == "flowers"
    titled = dataclasses.replace(made["folder"], title="roses")
    read = FeatureBank.load(titled.save(tmp_path / "other.safetensors"))
    assert read.title == "roses" and re.fullmatch("roses#[0-9a-f]{6}", read.shown_name)
    assert read.identity == made["folder"].identity and read.content_hash == made["folder"].content_hash
    both = concatenate([read, dataclasses.replace(read, features=2 * read.features)])
    assert both.shown_name == read.shown_name


def test_features_of_other_programs_are_called_by_their_file(tmp_path):
    np.savez(tmp_path / "birds.npz", features=np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    assert re.fullmatch("birds#[0-9a-f]{6}", FeatureBank.load(tmp_path / "birds.npz").shown_name)
