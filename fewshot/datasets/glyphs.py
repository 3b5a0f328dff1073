"""Glyphs: letters and digits of the fonts that matplotlib installs. It needs no download."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.datasets import cache
from fewshot.datasets.base import DATASETS, SPLITS, Dataset, Request, classes_of, read_splits

_STYLES = {"DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
           "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
           "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
           "STIXGeneral": ("", "Bol", "Italic", "BolIta")}
# Computer Modern has its own encoding: only its ASCII letters and digits are where Unicode has them.
_ASCII_FACES = ("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10")
FACES = (*(family + style for family, styles in _STYLES.items() for style in styles), *_ASCII_FACES)

_OVERSAMPLING = 4
# An em is 5/7 of the image (20 of 28 pixels), and ink keeps a margin of 1/14 (2 pixels) on every side.
_EM, _MARGIN = 5 / 7, 1 / 14


@DATASETS.register("glyphs")
@dataclass(frozen=True)
class Glyphs(Dataset):
    """One class per character, one image per face: 12 to 21 of DejaVu Sans, Sans Mono and Serif, STIX (four styles
    each) and, for ASCII, five faces of Computer Modern. Light ink on dark, centred; the size of a letter within its
    line is kept, so c and C differ.

    train (297 classes) is digits, Latin and Greek, val (54) Cyrillic, test (94) Georgian and Armenian.
    splits/glyphs.json lists the characters and the rule they were chosen by: no two splits share look-alikes (capital A
    is the same shape in Latin, Greek and Cyrillic), and of look-alikes within a split only the first is there. Accented
    letters are left out.
    """

    name = "glyphs"
    description = "letters and digits of 21 font faces: Latin, Greek and digits; Cyrillic; Georgian and Armenian"
    licence = "rendered from fonts that matplotlib ships: DejaVu (Bitstream Vera), STIX and BaKoMa font licences"
    homepage = "https://matplotlib.org"
    channels = 1
    image_size = 28
    queries = 7  # of at least 12 images a class, up to five are shots
    state = "built in"
    collection = "characters of Unicode"

    @property
    def lists(self) -> dict[str, str]:
        """Split -> its characters."""
        return read_splits(self.name)

    def find(self, root: Path) -> Path | None:
        return font_folder()

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        covered = {face: covers(face) for face in FACES}
        lists = self.lists
        return {split: (len(lists[split]), sum(ord(c) in cover for c in lists[split] for cover in covered.values()))
                for split in SPLITS}

    def load(self, request: Request) -> ImageBank:
        characters = classes_of(self.lists, request.split)
        size = request.image_size
        path = cache.path_for(request.cache, f"{self.name}-{request.split}", [characters, size, _versions()])
        kept = cache.read(path)
        if kept is None:
            kept = render_all(characters, size)
            cache.write(path, kept)
        files = tuple(f"{FACES[face]}.ttf:U+{ord(characters[label]):04X}"
                      for label, face in zip(kept["labels"].tolist(), kept["faces"].tolist(), strict=True))
        return ImageBank(kept["images"], kept["labels"], tuple(map(class_name, characters)), self.name, request.split,
                         files)


def class_name(character: str) -> str:
    """Unicode name, e.g. "GREEK SMALL LETTER GAMMA"."""
    return unicodedata.name(character)


def font_folder() -> Path:
    """Where matplotlib keeps its fonts, found without the half second that importing it takes."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None, "matplotlib is among the requirements"
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def covers(face: str) -> set[int]:
    """Code points for which a face has a glyph of its own (its character map, without the fallback glyph 0)."""
    from matplotlib.ft2font import FT2Font

    points = {point for point, glyph in FT2Font(_font_file(face)).get_charmap().items() if glyph != 0}
    return {p for p in points if p < 128 and chr(p).isalnum()} if face in _ASCII_FACES else points


def render_all(characters: list[str], size: int) -> dict[str, torch.Tensor]:
    """images [M, 1, size, size], labels [M] (position in `characters`) and faces [M] (position in FACES).

    A face's fallback box does not count as a character, and of identical images of a character only the first is
    kept: two faces that share a shape are one sample.
    """
    images, labels, faces = [], [], []
    seen: set[tuple[int, bytes]] = set()
    for number, face in enumerate(FACES):
        cover, font = covers(face), load_font(face, size)
        fallback = _pixels(draw(font, "\uffff"), size)
        for label, character in enumerate(characters):
            ink = draw(font, character) if ord(character) in cover else None
            if ink is None:
                continue
            pixels = _pixels(ink, size)
            key = (label, pixels.tobytes())
            if key not in seen and not np.array_equal(pixels, fallback):
                seen.add(key)
                images.append(pixels)
                labels.append(label)
                faces.append(number)
    order = np.lexsort((faces, labels))
    return {"images": torch.from_numpy(np.stack(images)[order, None]), "labels": torch.tensor(labels)[order],
            "faces": torch.tensor(faces)[order]}


def load_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """The face at the oversampled em of images of `size` pixels."""
    # BASIC: Raqm, where it is installed, would shape text and make the result depend on the machine.
    return ImageFont.truetype(_font_file(face), round(_EM * size * _OVERSAMPLING), layout_engine=ImageFont.Layout.BASIC)


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The ink of one character, white on black and cropped to its bounding box; None if it has none."""
    left, top, right, bottom = map(int, font.getbbox(character))
    image = Image.new("L", (max(1, right - left) + 4, max(1, bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font)
    box = image.getbbox()
    return image.crop(box) if box else None


def _pixels(ink: Image.Image | None, size: int) -> np.ndarray:
    """uint8 [size, size]: ink centred, shrunk only if it is larger than the room for it."""
    canvas = Image.new("L", (size * _OVERSAMPLING,) * 2)
    if ink is not None:
        room = round(size * (1 - 2 * _MARGIN)) * _OVERSAMPLING
        if max(ink.size) > room:
            shrunk = [max(1, round(side * room / max(ink.size))) for side in ink.size]
            ink = ink.resize(shrunk, Image.Resampling.BILINEAR)
        canvas.paste(ink, ((canvas.width - ink.width) // 2, (canvas.height - ink.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def _font_file(face: str) -> str:
    path = font_folder() / f"{face}.ttf"
    if not path.is_file():
        version = importlib.metadata.version("matplotlib")
        raise FewshotError(f"matplotlib {version} has no font {path}; reinstall it with its fonts")
    return str(path)


def _versions() -> list[str]:
    """What the pixels depend on: the font files, Pillow and its FreeType."""
    digests = [hashlib.sha256(Path(_font_file(face)).read_bytes()).hexdigest()[:16] for face in FACES]
    return [*digests, Image.__version__, str(features.version("freetype2"))]
