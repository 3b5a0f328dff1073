"""The embedded data set: one character per class, nothing shared between splits."""

from __future__ import annotations

import string
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.datasets import glyphs, load_dataset
from fewshot.datasets.base import DATASETS, read_splits

SCRIPTS = {"DIGIT": "train", "LATIN": "train", "GREEK": "train", "CYRILLIC": "val", "GEORGIAN": "test",
           "ARMENIAN": "test"}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {split: load_dataset("glyphs", split, root=root) for split in (*SPLITS, "all")}


def test_there_are_enough_classes_and_images(banks):
    assert {split: len(bank.class_names) for split, bank in banks.items()} == {"train": 297, "val": 54, "test": 94,
                                                                               "all": 445}
    assert {split: len(bank) for split, bank in banks.items()} == {"train": 4656, "val": 764, "test": 1128, "all": 6548}
    for bank in banks.values():
        # 20-way 1-shot with at least 5 queries a class, and more.
        assert int(bank.class_sizes().min()) >= 12 and int(bank.class_sizes().max()) <= 21
        assert bank.images.shape[1:] == (1, 28, 28) and bank.images.dtype == torch.uint8
    assert DATASETS["glyphs"]().counts(None) == {s: (len(banks[s].class_names), len(banks[s])) for s in SPLITS}


def test_each_class_is_one_character_of_the_script_of_its_split(banks):
    for split in SPLITS:
        bank = banks[split]
        for name, label in zip(bank.class_names, range(len(bank.class_names)), strict=True):
            points = {bank.files[row].split(":")[1] for row in (bank.labels == label).nonzero()[:, 0].tolist()}
            assert points == {f"U+{ord(unicodedata.lookup(name)):04X}"}
            assert SCRIPTS[name.split()[0]] == split


def test_no_image_occurs_twice_in_a_class_or_in_two_classes(banks):
    owners = defaultdict(set)
    bank = banks["all"]
    for image, label, file in zip(bank.images, bank.labels.tolist(), bank.files, strict=True):
        owners[image.numpy().tobytes()].add((label, file))
    assert [sorted(found) for found in owners.values() if len(found) > 1] == []


def test_no_image_is_empty_cut_off_or_a_fallback_box(banks):
    images = banks["all"].images[:, 0]
    # Ink worth ten full pixels; a thin stroke between two columns is 128 in both.
    assert float((images.float() / 255).sum((1, 2)).min()) > 10
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert int(border.max()) == 0
    boxes = {glyphs._pixels(glyphs.draw(glyphs.load_font(face, 28), "\uffff"), 28).tobytes() for face in glyphs.FACES}
    assert not boxes & {image.numpy().tobytes() for image in images}


def test_a_face_without_the_character_yields_nothing():
    # Computer Modern has other glyphs where Latin-1 letters would be (U+00A1 is a Gamma); STIX has no Georgian.
    assert {chr(point) for point in glyphs.covers("cmti10")} == set(string.ascii_letters + string.digits)
    kept = glyphs.render_all(["A", "\u00c6", "\u10d0"], 28)
    faces = [{glyphs.FACES[f] for f in kept["faces"][kept["labels"] == label].tolist()} for label in range(3)]
    assert len(faces[0]) == 21 and "cmr10" not in faces[1] and len(faces[1]) == 16
    assert {face[:6] for face in faces[2]} == {"DejaVu"}


def test_two_faces_with_the_same_shape_are_one_image(monkeypatch):
    monkeypatch.setattr(glyphs, "FACES", ("cmr10", "cmr10", "DejaVuSans"))
    assert len(glyphs.render_all(["A"], 28)["images"]) == 2


def test_ink_is_light_on_dark_and_sizes_follow_the_request(tmp_path):
    for size in (20, 56):
        bank = load_dataset("glyphs", "val", root=tmp_path, image_size=size)
        assert bank.images.shape[1:] == (1, size, size)
        assert float(bank.images.float().mean()) < 80 and int(bank.images.amax((1, 2, 3)).min()) > 128


def test_cached_and_fresh_banks_are_equal(banks, tmp_path):
    fresh = load_dataset("glyphs", "test", root=tmp_path, cache=False)
    assert fresh.content_hash == banks["test"].content_hash and fresh.files == banks["test"].files
    assert not list(tmp_path.iterdir())


def _shape(ink: Image.Image) -> np.ndarray:
    """The ink scaled to 24x24 whatever its size, so that o and O compare as equal."""
    width, height = (max(1, round(side * 24 / max(ink.size))) for side in ink.size)
    canvas = Image.new("L", (24, 24))
    canvas.paste(ink.resize((width, height), Image.Resampling.BILINEAR), ((24 - width) // 2, (24 - height) // 2))
    return np.asarray(canvas, dtype=np.float64).ravel() / 255


def _distances(characters: list[str], cover: dict[str, set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Relative squared distance of every two characters: smallest over the shared faces, and mean over them."""
    count = len(characters)
    low, total, shared = np.full((count, count), np.inf), np.zeros((count, count)), np.zeros((count, count))
    for face in glyphs.FACES:
        font = glyphs.load_font(face, 28)
        rows = [row for row, c in enumerate(characters) if ord(c) in cover[face]]
        shapes = np.stack([_shape(glyphs.draw(font, characters[row])) for row in rows])
        norms = (shapes**2).sum(1)
        gap = (norms[:, None] + norms[None] - 2 * shapes @ shapes.T).clip(0) / np.minimum(norms[:, None], norms[None])
        block = np.ix_(rows, rows)
        low[block], total[block], shared[block] = np.minimum(low[block], gap), total[block] + gap, shared[block] + 1
    return low, np.where(shared > 0, total / shared.clip(1), np.inf)


def test_splits_share_no_look_alikes():
    """Of the pairs everybody would name first."""
    chosen = read_splits("glyphs")
    for latin, other in (("A", "\u0410"), ("P", "\u0420"), ("3", "\u0417"), ("O", "\u0555"), ("h", "\u0570")):
        assert latin in chosen["train"] and other not in chosen["val"] + chosen["test"]


@pytest.mark.slow
def test_the_committed_characters_follow_the_rule():
    """Repeats the choice that splits/glyphs.json describes."""
    cover = {face: glyphs.covers(face) for face in glyphs.FACES}
    faces = {point: sum(point in points for points in cover.values()) for points in cover.values() for point in points}
    characters = [c for c in map(chr, faces)
                  if faces[ord(c)] >= 12 and unicodedata.category(c) in ("Lu", "Ll", "Lo", "Nd")
                  and unicodedata.normalize("NFKD", c) == c and unicodedata.name(c).split()[0] in SCRIPTS
                  and c not in "\u04cb\u04cc\u04f6\u04f7"]
    characters.sort(key=lambda c: (list(SCRIPTS).index(unicodedata.name(c).split()[0]), c))
    images = torch.bincount(glyphs.render_all(characters, 28)["labels"])
    characters = [c for c, found in zip(characters, images.tolist(), strict=True) if found == faces[ord(c)]]
    low, mean = _distances(characters, cover)
    home = np.array([SCRIPTS[unicodedata.name(c).split()[0]] for c in characters])
    same = home[:, None] == home[None]
    alike = (low < np.where(same, 0.05, 0.1)) | (mean < np.where(same, 0.15, 0.25))
    kept: list[int] = []
    for row in range(len(characters)):
        if not alike[row, kept].any():
            kept.append(row)
    chosen = {split: "".join(characters[row] for row in kept if home[row] == split) for split in SPLITS}
    assert chosen == {split: read_splits("glyphs")[split] for split in SPLITS}
