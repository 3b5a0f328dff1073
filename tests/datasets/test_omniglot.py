"""Omniglot: protocols, rotations, archives and extracted trees."""

from __future__ import annotations

import warnings
import zipfile

import pytest
import torch
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.datasets import dataset_table, load_dataset
from fewshot.datasets.omniglot import Omniglot
from tests.datasets.synthetic import write_omniglot

pytestmark = pytest.mark.filterwarnings("ignore:.*drawings", "ignore:.*packed by somebody else")
VAL_ALPHABETS = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return write_omniglot(tmp_path_factory.mktemp("data"))


def names(copy, split, **options):
    return Omniglot(**options).listing(Omniglot().find(copy), split).class_names


def test_the_default_protocol_is_background_against_evaluation(copy):
    train, val, test = (names(copy, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (792, 172, 659)
    alphabets = [{name.split("/")[0] for name in part} for part in (train, val, test)]
    assert alphabets[1] == VAL_ALPHABETS and [len(a) for a in alphabets] == [25, 5, 20]
    assert not (alphabets[0] & alphabets[2]) and not (alphabets[0] & alphabets[1])
    assert set(names(copy, "all")) == {*train, *val, *test} and len(names(copy, "all")) == 1623
    assert "Angelic/character01" in test and "Greek/character24" in train


def test_the_vinyals_protocol_has_the_published_sizes(copy):
    train, val, test = (names(copy, split, protocol="vinyals") for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (1028, 172, 423)
    assert len({*train, *val, *test}) == 1623
    assert {name.split("/")[0] for name in val} == VAL_ALPHABETS
    # Published quirk: one alphabet is divided.
    assert "Gurmukhi/character41" in train and "Gurmukhi/character42" in test


def test_ink_is_light_on_dark_and_antialiased(copy):
    bank = load_dataset("omniglot", "val", root=copy)
    assert bank.images.shape == (172, 1, 28, 28) and bank.images.dtype == torch.uint8
    image = bank.images[0, 0]
    # The stroke covers rows 20-30 and columns 10-90 of 105, so rows 5.3-8 and columns 2.7-24 of 28.
    assert int(image[6:7, 4:22].min()) > 240 and int(image[12:].max()) == 0 and int(image[:3].max()) == 0
    assert 0 < int(image[5, 10]) < 255
    large = load_dataset("omniglot", "val", root=copy, image_size=105)
    assert sorted(large.images.unique().tolist()) == [0, 255]


def test_rotations_are_further_classes(copy):
    plain, turned = (load_dataset("omniglot", "val", root=copy, rotations=r) for r in (False, True))
    count = len(plain.class_names)
    assert len(turned.class_names) == 4 * count == len(set(turned.class_names)) and len(turned) == 4 * len(plain)
    for turns in range(4):
        rows = turned.labels == 5 + turns * count
        assert torch.equal(turned.images[rows], torch.rot90(plain.images[plain.labels == 5], turns, (2, 3)))
        assert turned.class_names[5 + turns * count].startswith(plain.class_names[5])
    assert turned.files[count * 4 - 1] == plain.files[-1]


def test_an_extracted_tree_gives_the_same_bank_as_the_zips(copy, tmp_path):
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(copy / "omniglot" / f"images_{part}.zip") as archive:
            archive.extractall(tmp_path / "omniglot")
    assert not list(tmp_path.glob("omniglot/*.zip"))
    for split in ("val", "test"):
        ours, theirs = (load_dataset("omniglot", split, root=root) for root in (tmp_path, copy))
        assert ours.class_names == theirs.class_names and ours.content_hash == theirs.content_hash


def test_another_checksum_is_a_warning_and_only_when_decoding(copy, tmp_path):
    with pytest.warns(UserWarning, match="images_background.zip has MD5 .* the published file 68d2efa1b9178cc5"):
        load_dataset("omniglot", "val", root=copy, cache=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*20 drawings")
        load_dataset("omniglot", "val", root=copy, cache=tmp_path)


def test_one_archive_alone_is_missing_data(tmp_path):
    write_omniglot(tmp_path)
    (tmp_path / "omniglot" / "images_evaluation.zip").unlink()
    with pytest.raises(FewshotError, match="images_evaluation.zip"):
        load_dataset("omniglot", root=tmp_path)


@pytest.mark.slow
def test_the_real_archives_hold_every_drawing(shared_data):
    row = next(row for row in dataset_table(shared_data) if row["name"] == "omniglot")
    assert {split: tuple(found.values()) for split, found in row["splits"].items()} == {
        "train": (792, 15840), "val": (172, 3440), "test": (659, 13180)}
    vinyals = Omniglot(protocol="vinyals").counts(shared_data)
    assert vinyals == {"train": (1028, 20560), "val": (172, 3440), "test": (423, 8460)}


@pytest.mark.slow
def test_the_real_drawings_decode_once(shared_data, tmp_path, monkeypatch):
    for split, characters in (("train", 792), ("val", 172), ("test", 659)):
        bank = load_dataset("omniglot", split, root=shared_data, cache=tmp_path)
        assert bank.class_sizes().tolist() == [20] * characters and bank.images.shape[1:] == (1, 28, 28)
        assert 2 < float(bank.images.float().mean()) < 40 and int(bank.images.amax((1, 2, 3)).min()) > 60
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded again"))
    assert load_dataset("omniglot", "test", root=shared_data, cache=tmp_path).content_hash == bank.content_hash
