"""Named glyphs: which letters are where, and that no name or image of the test was seen."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.datasets import glyphs, load_dataset
from fewshot.datasets.base import SPLITS, read_splits
from fewshot.datasets.named_glyphs import NamedGlyphs

SCRIPTS = {"LATIN": "known", "GREEK": "known", "CYRILLIC": "known", "ARMENIAN": "scripts", "GEORGIAN": "scripts",
           "LAO": "scripts"}
LEAST = 8  # images of a letter


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    return {split: load_dataset("named_glyphs", split, root=root, cache=root) for split in SPLITS}


@pytest.fixture(scope="module")
def names():
    lists = read_splits("named_glyphs")
    return {split: [unicodedata.name(letter) for letter in lists[split]] for split in (*SPLITS, "scripts")}


def words(names) -> set[str]:
    return {word for name in names for word in name.split()}


def composition(name: str) -> tuple[str, tuple[str, ...]]:
    """(letter, marks), without its case: E acute and e acute are one."""
    letter, _, marks = re.sub("CAPITAL |SMALL ", "", name).partition(" WITH ")
    return letter, tuple(marks.split(" AND ")) if marks else ()


@pytest.mark.slow
def test_the_classes_are_called_by_their_names(banks, names):
    assert NamedGlyphs().counts(None) == {split: (len(bank.class_names), len(bank)) for split, bank in banks.items()}
    for split, bank in banks.items():
        assert list(bank.class_names) == names[split]
        assert bank.images.shape[1:] == (1, 32, 32) and min(bank.class_sizes().tolist()) >= LEAST


def test_no_composition_of_the_test_was_seen_and_every_part_was(names):
    assert {split: len(found) for split, found in names.items()} == {"train": 854, "val": 141, "test": 279, "scripts": 215}
    assert "LATIN SMALL LETTER A" in names["train"] and "LATIN SMALL LETTER U WITH ACUTE" in names["test"]
    train = {composition(name) for name in names["train"]}
    letters, marks = {letter for letter, _ in train}, Counter(mark for _, of_letter in train for mark in of_letter)
    for split in ("val", "test"):
        held = {composition(name) for name in names[split]}
        assert not held & train and words(names[split]) <= words(names["train"])
        assert all(letter in letters and of_letter and min(marks[mark] for mark in of_letter) >= 2
                   for letter, of_letter in held)
    assert not {composition(name) for name in names["val"]} & {composition(name) for name in names["test"]}


@pytest.mark.slow
def test_no_image_of_the_test_was_seen(banks):
    """Whatever the letter: a Greek vowel with an accent may look as the Latin one."""
    seen = {image.numpy().tobytes() for split in ("train", "val") for image in banks[split].images}
    assert not [image for image in banks["test"].images if image.numpy().tobytes() in seen]


def test_other_scripts_are_a_protocol(tmp_path, names):
    other = load_dataset("named_glyphs", root=tmp_path, protocol="scripts")
    assert list(other.class_names) == names["scripts"] and other.images.shape[1:] == (1, 32, 32)
    assert {name.split()[0] for name in other.class_names} == {"ARMENIAN", "GEORGIAN", "LAO"}
    known = [name for name in other.class_names if words([name]) <= words(names["train"])]
    assert not known  # their names begin with a word that was never read
    with pytest.raises(FewshotError, match="did you mean 'scripts'"):
        load_dataset("named_glyphs", root=tmp_path, protocol="script")


def chosen() -> dict[str, str]:
    """Repeats the choice that splits/named_glyphs.json describes."""
    cover = {face: glyphs.covers(face) for face in glyphs.FACES}
    pattern = re.compile(f"({'|'.join(SCRIPTS)}) (CAPITAL |SMALL |)LETTER [A-Z -]+")
    points = sorted(set().union(*cover.values()))
    letters = [chr(point) for point in points if pattern.fullmatch(unicodedata.name(chr(point), ""))]
    letters = [letter for letter in letters if letter not in "\u04cb\u04cc\u04f6\u04f7"]
    images: dict[str, set[bytes]] = defaultdict(set)
    first: dict[tuple[str, bytes], str] = {}
    copies = set()
    for face in glyphs.FACES:
        font = glyphs.load_font(face, 32)
        fallback = glyphs._pixels(glyphs.draw(font, "\uffff"), 32)
        for letter in letters:
            ink = glyphs.draw(font, letter) if ord(letter) in cover[face] else None
            if ink is None or np.array_equal(pixels := glyphs._pixels(ink, 32), fallback):
                continue
            images[letter].add(pixels.tobytes())
            if first.setdefault((face, pixels.tobytes()), letter) != letter:
                copies.add(letter)
    faces = {letter: sum(ord(letter) in covered for covered in cover.values()) for letter in letters}
    letters = [letter for letter in letters if letter not in copies and LEAST <= faces[letter] == len(images[letter])]
    homes: dict[str, list[str]] = {"known": [], "scripts": []}
    for letter in letters:
        homes[SCRIPTS[unicodedata.name(letter).split()[0]]].append(letter)
    groups = defaultdict(list)
    for letter in homes["known"]:
        groups[composition(unicodedata.name(letter))].append(letter)
    bases = Counter(base for base, _ in groups)
    marks = Counter(mark for _, of_letter in groups for mark in of_letter)
    held = []
    for base, of_letter in sorted(groups, key=lambda group: hashlib.sha256(f"{group[0]} WITH {' AND '.join(group[1])}"
                                                                           .encode()).hexdigest()):
        if of_letter and len(held) < 240 and bases[base] >= 3 and all(marks[mark] >= 4 for mark in of_letter):
            held.append((base, of_letter))
            bases[base] -= 1
            marks.subtract(of_letter)
    home = {group: "val" if place < 80 else "test" for place, group in enumerate(held)}
    found = {split: "".join(letter for letter in homes["known"]
                            if home.get(composition(unicodedata.name(letter)), "train") == split) for split in SPLITS}
    return {**found, "scripts": "".join(homes["scripts"])}


@pytest.mark.slow
def test_the_committed_letters_follow_the_rule():
    lists = read_splits("named_glyphs")
    assert chosen() == {split: lists[split] for split in (*SPLITS, "scripts")}
