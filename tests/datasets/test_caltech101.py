"""Caltech-101: the class split, the published image split, both layouts."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest

from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
from fewshot.datasets.base import read_splits
from fewshot.datasets.caltech101 import Caltech101
from tests.datasets.synthetic import encoded

SPLITS = read_splits("caltech101")
NAMES = sorted(name for split in ("train", "val", "test") for name in SPLITS[split])


def write_zip(root, prefix=""):
    (root / "caltech101").mkdir(parents=True)
    with zipfile.ZipFile(root / "caltech101" / "caltech101_s128.zip", "w") as archive:
        for number, name in enumerate([*NAMES, "BACKGROUND_Google", "Faces_easy"]):
            for image in (1, 2):
                archive.writestr(f"{prefix}{name}/image_{image:04d}.jpg", encoded((number, 50, image * 100), (40, 30)))
    return root


def test_the_class_split_is_the_documented_deal():
    together = {"cougar_face": "cougar_body", "crocodile_head": "crocodile", "flamingo_head": "flamingo"}
    groups = {name: [name, *(k for k, v in together.items() if v == name)] for name in NAMES if name not in together}
    dealt = {"train": [], "val": [], "test": []}
    room = {"train": 60, "val": 16, "test": 24}
    for first in sorted(groups, key=lambda n: hashlib.sha256(f"fewshot/caltech101/{n}".encode()).hexdigest()):
        home = next(split for split in dealt if len(dealt[split]) + len(groups[first]) <= room[split])
        dealt[home] += groups[first]
    assert {split: sorted(found) for split, found in dealt.items()} == {split: SPLITS[split] for split in dealt}
    assert len(NAMES) == len(set(NAMES)) == 100 and not {"BACKGROUND_Google", "Faces_easy"} & set(NAMES)


@pytest.mark.parametrize("prefix", ["", "101_ObjectCategories/", "caltech-101/101_ObjectCategories/"])
def test_the_zip_is_read_in_place(prefix, tmp_path):
    root = write_zip(tmp_path, prefix)
    bank = load_dataset("caltech101", "test", root=root, image_size=16)
    assert bank.class_names == tuple(SPLITS["test"]) and bank.class_sizes().tolist() == [2] * 24
    assert bank.images.shape == (48, 3, 16, 16)
    assert len(load_dataset("caltech101", "all", root=root, image_size=16).class_names) == 100


def test_the_official_tree_is_read_too(tmp_path):
    with zipfile.ZipFile(write_zip(tmp_path) / "caltech101" / "caltech101_s128.zip") as archive:
        archive.extractall(tmp_path / "official" / "caltech101" / "101_ObjectCategories")
    bank = load_dataset("caltech101", "val", root=tmp_path / "official", image_size=16)
    zipped = load_dataset("caltech101", "val", root=tmp_path, image_size=16)
    assert bank.content_hash == zipped.content_hash


def test_the_published_split_divides_images_not_classes(tmp_path):
    root = write_zip(tmp_path)
    with pytest.raises(FewshotError, match="needs .*split_zhou_Caltech101.json"):
        load_dataset("caltech101", root=root, protocol="zhou")
    lists = {"train": [[f"{n}/image_0001.jpg", i, n.lower()] for i, n in enumerate(NAMES)], "val": [],
             "test": [[f"{n}/image_0002.jpg", i, n.lower()] for i, n in enumerate(NAMES)]}
    path = root / "caltech101" / "split_zhou_Caltech101.json"
    path.write_text(json.dumps(lists))
    bank = load_dataset("caltech101", "test", root=root, protocol="zhou", image_size=16)
    assert bank.class_names == tuple(n.lower() for n in NAMES) and bank.labels.tolist() == list(range(100))
    assert all(file.endswith("image_0002.jpg") for file in bank.files)
    assert abs(int(bank.images[7, 0, 8, 8]) - 7) <= 3
    lists["test"].append(["Faces/image_0099.jpg", 0, "faces"])
    path.write_text(json.dumps(lists))
    with pytest.raises(FewshotError, match="1 images that .* names are not there, the first is Faces/image_0099.jpg"):
        load_dataset("caltech101", "test", root=root, protocol="zhou")
    path.write_text("[]")
    with pytest.raises(FewshotError, match="is not the published split file"):
        load_dataset("caltech101", "test", root=root, protocol="zhou")


@pytest.mark.slow
def test_the_real_archive_holds_every_photograph(shared_data):
    counts = Caltech101().counts(shared_data)
    assert {split: classes for split, (classes, _) in counts.items()} == {"train": 60, "val": 16, "test": 24}
    assert sum(images for _, images in counts.values()) == 8242
    assert Caltech101(protocol="zhou").counts(shared_data) == {"train": (100, 4128), "val": (100, 1649),
                                                              "test": (100, 2465)}


@pytest.mark.slow
def test_the_real_photographs_are_readable_and_no_two_are_equal(shared_data):
    bank = load_dataset("caltech101", "all", root=shared_data, cache=False)
    assert bank.images.shape == (8242, 3, 128, 128)
    assert int(bank.class_sizes().min()) == 31 and int(bank.class_sizes().max()) == 800
    assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in bank.images}) == 8242
