"""Data sets whose splits have all classes each: tiny copies in the published layouts."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.datasets import DATASETS, instructions, load_dataset
from fewshot.datasets.divided import DividedImages
from fewshot.episodes.all_classes import AllClassesSampler
from tests.datasets.synthetic import encoded

NAMES = [name for name in DATASETS if issubclass(DATASETS[name], DividedImages)]
LISTED = [name for name in NAMES if name not in ("fgvc_aircraft", "imagenet")]
PLACES = {"stanford_cars": ("cars_train/{}.jpg", "cars_train/{}.jpg", "cars_test/{}.jpg"),
          "sun397": ("a/abbey/{}.jpg", "b/bank/outdoor/{}.jpg", "b/bank/{}.jpg"), "oxford_pets": ("{}.jpg",) * 3}


def write(root, name):
    """Two images of each of three classes in every part; returns the folder of the set."""
    cls = DATASETS[name]
    folder = root / cls.folder
    lists = {"train": [], "val": [], "test": []}
    for part, place in zip(lists, PLACES.get(name, ("some/{}.jpg", "some/{}.jpg", "other/{}.jpg")), strict=True):
        for label in range(3):
            for image in range(2):
                file = place.format(f"{part}_{label}_{image}")
                lists[part].append([file, label, f"name of {label}"])
                (folder / cls.images / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / cls.images / file).write_bytes(encoded((label * 60, image * 90, 10), (40, 30)))
    (folder / cls.lists_file).write_text(json.dumps(lists))
    return folder


def test_they_are_those_of_the_literature():
    assert {*NAMES, "caltech101"} == {"caltech101", "dtd", "eurosat", "fgvc_aircraft", "food101", "imagenet",
                                      "oxford_flowers", "oxford_pets", "stanford_cars", "sun397", "ucf101"}


@pytest.mark.parametrize("name", LISTED)
def test_every_split_has_all_classes(name, tmp_path):
    write(tmp_path, name)
    for number, split in enumerate(("train", "val", "test")):
        bank = load_dataset(name, split, root=tmp_path, image_size=16, cache=False)
        assert bank.class_sizes().tolist() == [2, 2, 2] and bank.class_names[1] == "name of 1" and bank.parts is None
        together = load_dataset(name, "all", root=tmp_path, image_size=16, cache=False)
        assert torch.equal(together.images[together.parts == number], bank.images)
    drawn = AllClassesSampler(together, 1).indices(0, 2)
    assert (together.parts[drawn.query] == 2).all() and (together.parts[drawn.validation] == 1).all()
    table = DATASETS[name]().counts(tmp_path)
    assert table == dict.fromkeys(("train", "val", "test"), (3, 6))


def test_a_zip_of_the_images_will_do(tmp_path):
    folder = write(tmp_path, "dtd")
    unpacked = load_dataset("dtd", "all", root=tmp_path, image_size=16, cache=False)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for file in sorted((folder / "images").rglob("*.jpg")):
            archive.write(file, f"dtd/images/{file.relative_to(folder / 'images')}")
            file.unlink()
    for empty in sorted((folder / "images").rglob("*"), reverse=True):
        empty.rmdir()
    (folder / "images").rmdir()
    assert load_dataset("dtd", "all", root=tmp_path, image_size=16, cache=False).content_hash == unpacked.content_hash


def test_aircraft_has_lists_of_its_own(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA300 B4\n")
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{number}{label}00 {variant}" for label, variant in enumerate(("707-320", "A300 B4"))]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            (folder / "images" / f"{line.split()[0]}.jpg").write_bytes(encoded((number, 7, 9), (30, 30)))
    bank = load_dataset("fgvc_aircraft", "all", root=tmp_path, image_size=16, cache=False)
    assert bank.class_names == ("707-320", "A300 B4") and bank.parts.tolist() == [0, 0, 1, 1, 2, 2]
    assert bank.labels.tolist() == [0, 1] * 3
    (folder / "images" / "2100.jpg").unlink()
    with pytest.raises(FewshotError, match="images_variant_test.txt names '2100 A300 B4'"):
        load_dataset("fgvc_aircraft", "test", root=tmp_path, image_size=16, cache=False)


def test_imagenet_validates_on_training_images(tmp_path):
    folder = tmp_path / "imagenet"
    for part, images in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            (folder / "images" / part / wnid).mkdir(parents=True)
            for image in range(images):
                (folder / "images" / part / wnid / f"{image}.JPEG").write_bytes(encoded((image, 9, 200), (30, 30)))
    (folder / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    bank = load_dataset("imagenet", "all", root=tmp_path, image_size=16, cache=False)
    assert bank.class_names == ("tench", "goldfish") and bank.parts.bincount().tolist() == [8, 0, 4]
    drawn = AllClassesSampler(bank, 2).indices(0, 3)
    assert (bank.parts[drawn.validation] == 0).all() and drawn.validation.shape == (3, 4) and drawn.query.shape == (3, 4)
    for support, validation in zip(drawn.support.tolist(), drawn.validation.tolist(), strict=True):
        assert not set(support) & set(validation)
    with pytest.raises(FewshotError, match="no split val"):
        load_dataset("imagenet", "val", root=tmp_path, image_size=16, cache=False)
    with pytest.raises(FewshotError, match="4 training images are needed|has 4 images where 6 training images"):
        AllClassesSampler(bank, 3)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_said(name, tmp_path):
    with pytest.raises(FewshotError, match=f"(?s){name} is not under.*files at"):
        load_dataset(name, "test", root=tmp_path, cache=False)
    assert "CoOp" in instructions(name)


def test_lists_that_are_missing_damaged_or_name_other_images(tmp_path):
    lists = write(tmp_path, "eurosat") / "split_zhou_EuroSAT.json"
    given = json.loads(lists.read_text())
    for text, says in ((json.dumps({**given, "test": [["some/none.jpg", 0, "x"]]}), "the first is some/none.jpg"),
                       ("{}", "is not the published split file"), (None, "github.com/KaiyangZhou/CoOp")):
        if text is None:
            lists.unlink()
        else:
            lists.write_text(text)
        with pytest.raises(FewshotError, match=says):
            load_dataset("eurosat", "test", root=tmp_path, image_size=16, cache=False)


def test_the_published_numbers(shared_data):
    """Of the real split files: classes as registered, parts as documented."""
    expected = {"dtd": (2820, 1128, 1692), "eurosat": (13500, 5400, 8100), "oxford_flowers": (4093, 1633, 2463),
                "oxford_pets": (2944, 736, 3669), "stanford_cars": (6509, 1635, 8041), "ucf101": (7639, 1898, 3783)}
    with zipfile.ZipFile(shared_data / "coop_split_zhou.zip") as archive:
        for name, counts in expected.items():
            lists = json.loads(archive.read(DATASETS[name].lists_file))
            assert tuple(len(lists[part]) for part in ("train", "val", "test")) == counts
            assert len({row[1] for part in lists.values() for row in part}) == DATASETS[name].number
