"""Labels images with the model.onnx beside this file. Needs onnxruntime, numpy and pillow, nothing else:

    python classify.py photos                        # a folder, with all folders below it, or one image
    python classify.py photos --out predictions.csv

prints file, predicted class, its probability, a note, and the probability of every class, as `fewshot predict` does. From
Python, `Model("model.onnx")(images)` gives the probabilities [B, N] of uint8 images [B, C, S, S].
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from fewshot.datasets.decoding import IMAGE_SUFFIXES, UNREADABLE, decode, reason

BATCH = 64  # images that go through the network at once


class Model:
    """A file that `fewshot export` wrote: its path, or its bytes.

    class_names     [N], in the order of the probabilities
    size, channels  of the square images that it takes
    about           all that is said about it: method, backbone, weights, versions
    """

    def __init__(self, source: str | bytes):
        self._session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        about = self._session.get_modelmeta().custom_metadata_map.get("fewshot")
        if about is None:
            raise ValueError("it was not written by `fewshot export`")
        self.about = json.loads(about)
        self.class_names, self.size, self.channels = (self.about[key] for key in ("class_names", "image_size", "channels"))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities [B, N] of uint8 images [B, C, S, S]."""
        return self._session.run(None, {"images": images})[0]

    def read(self, path: Path) -> np.ndarray | Exception:
        """uint8 [C, S, S] of an image file, or why it cannot be read."""
        try:
            return decode(path.read_bytes(), self.size, self.channels)
        except UNREADABLE as error:
            return error


def image_files(folder: Path) -> list[str]:
    """All images below `folder`, as paths with forward slashes, sorted; hidden files and folders do not count."""
    found: list[str] = []
    for here, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(here), *map(str, Path(os.path.realpath(here)).parents)}
        # A link to a folder that it lies in would never end.
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(os.path.join(here, name)) not in above]
        found += [Path(here, name).relative_to(folder).as_posix() for name in names
                  if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found, key=lambda name: unicodedata.normalize("NFC", name))


def rows(model: Model, folder: Path, names: list[str]) -> Iterator[list[str]]:
    """A line of the table for every file: name, class, its probability, note, all probabilities."""
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for start in range(0, len(names), BATCH):
            part = names[start:start + BATCH]
            read = list(pool.map(model.read, [folder / name for name in part]))
            images = [image for image in read if not isinstance(image, Exception)]
            answers = iter(model(np.stack(images)) if images else ())
            for name, image in zip(part, read, strict=True):
                if isinstance(image, Exception):
                    yield [name, "", "", f"unreadable: {reason(image)}", *[""] * len(model.class_names)]
                else:
                    p = next(answers)
                    yield [name, model.class_names[p.argmax()], f"{p.max():.6f}", "", *(f"{value:.6f}" for value in p)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="folder of images to label, at any depth; or one image")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"),
                        help="what `fewshot export` wrote (default: model.onnx beside this file)")
    parser.add_argument("--out", type=Path, help="write the table to this file (default: print it)")
    given = parser.parse_args()
    if not given.model.is_file():
        parser.error(f"no model at {given.model}; `fewshot export` writes one")
    try:
        model = Model(str(given.model))
    except Exception as error:  # onnxruntime has a class of its own for every kind of damage
        parser.error(f"{given.model} cannot be used ({error}); write it again with `fewshot export`")
    one = given.images.is_file()
    if not one and not given.images.is_dir():
        parser.error(f"{given.images} is neither a folder nor an image file")
    folder, names = (given.images.parent, [given.images.name]) if one else (given.images, image_files(given.images))
    if not names:
        parser.error(f"{given.images} has no image to label (.jpg, .png, .webp, .bmp, .gif, .tif, ...)")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "predicted", "probability", "note", *(f"p({name})" for name in model.class_names)])
    # Pillow suspects an attack behind any image beyond 90 megapixels; these are the user's own.
    warnings.filterwarnings("ignore", "Image size")
    writer.writerows(sorted(rows(model, folder, names)))
    if given.out is None:
        sys.stdout.write(text.getvalue())
    else:
        part = given.out.with_name(f"{given.out.name}.{os.getpid()}.tmp")
        part.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(part, given.out)


if __name__ == "__main__":
    main()
