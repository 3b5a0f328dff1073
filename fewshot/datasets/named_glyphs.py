"""Named glyphs: letters whose names in Unicode say what they are made of, an image-text corpus without a download."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.datasets.base import DATASETS, read_splits
from fewshot.datasets.glyphs import Glyphs


@DATASETS.register("named_glyphs")
@dataclass(frozen=True)
class NamedGlyphs(Glyphs):
    """Letters in the faces of `glyphs`, 8 to 21 images each, with their official names, such as "LATIN SMALL LETTER U WITH
    ACUTE", as names of the classes: 854 to train on, 141 for validation, and a test by `protocol`.

    protocol   "compositions" (default): 279 letters with marks that are not in train in either case, while every word of
               their names is: the letter with other marks or none, each mark on other letters. Validation is made in the
               same way. "scripts": 215 letters of Armenian, Georgian and Lao, whose words are mostly not in train

    splits/named_glyphs.json lists the characters and the rule that they were chosen by. Letters that look the same to the
    pixel in some face are there once; similar ones are (a caron and a breve are three pixels apart).
    """

    name = "named_glyphs"
    description = "letters of 21 font faces with their Unicode names: Latin, Greek, Cyrillic; Armenian, Georgian, Lao"
    image_size = 32
    queries = 3  # of at least 8 images a class, up to five are shots
    protocols = ("compositions", "scripts")

    protocol: str = "compositions"

    @property
    def lists(self) -> dict[str, str]:
        lists = read_splits(self.name)
        return lists if self.protocol == "compositions" else {**lists, "test": lists["scripts"]}
