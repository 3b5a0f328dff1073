"""Tiny copies of data sets in their official layouts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot.datasets.base import read_splits


def encoded(colour=(200, 30, 60), size=(12, 10), kind="JPEG", mode="RGB") -> bytes:
    """One image file of a single colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


def write_class_folders(folder: Path, classes: dict[str, int], data: bytes | None = None, suffix=".jpg") -> Path:
    """folder/<class>/<class>_<i>.jpg"""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{name}_{number}{suffix}").write_bytes(data or encoded((number, 100, 200)))
    return folder


def omniglot_characters() -> dict[str, list[str]]:
    """part -> all "Alphabet/characterNN" of Omniglot."""
    found: dict[str, list[str]] = {"background": [], "evaluation": []}
    for split in ("train", "val", "test"):
        for part, alphabets in read_splits("omniglot")[split].items():
            for alphabet, (first, last) in alphabets.items():
                found[part] += [f"{alphabet}/character{n:02d}" for n in range(first, last + 1)]
    return found


def write_omniglot(root: Path, drawings: int = 1) -> Path:
    """Both zips with all 1,623 characters; every drawing is the same black stroke on white."""
    pixels = np.full((105, 105), 255, dtype=np.uint8)
    pixels[20:30, 10:90] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "PNG")
    (root / "omniglot").mkdir(parents=True, exist_ok=True)
    for part, characters in omniglot_characters().items():
        with zipfile.ZipFile(root / "omniglot" / f"images_{part}.zip", "w") as archive:
            for number, character in enumerate(characters):
                for drawing in range(1, drawings + 1):
                    archive.writestr(f"images_{part}/{character}/{number:04d}_{drawing:02d}.png", buffer.getvalue())
    return root
