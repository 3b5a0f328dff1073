"""Omniglot: handwritten characters of 50 alphabets."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewshot.data.banks import ImageBank
from fewshot.datasets.base import DATASETS, SPLITS, Request, read_splits
from fewshot.datasets.files import Download, Tree, md5_of, open_tree
from fewshot.datasets.images import ImageFiles, Listing, need_classes

_HOME = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_PARTS = ("background", "evaluation")


@DATASETS.register("omniglot")
@dataclass(frozen=True)
class Omniglot(ImageFiles):
    """Light ink on dark (inverted, as in ProtoNet), 28x28 by antialiased reduction of the 105x105 drawings.

    protocol    "background_evaluation": train and val are the 30 background alphabets, val the five of them that
                Vinyals et al. validate on (Armenian, Bengali, Early_Aramaic, Hebrew, Mkhedruli_(Georgian)), test all
                evaluation alphabets: 792 / 172 / 659 characters.
                "vinyals": the 1028 / 172 / 423 characters of Vinyals et al. 2016 as published with ProtoNet. It puts 41
                characters of Gurmukhi in train and the other 4 in test.
    rotations   the drawings turned by 90, 180 and 270 degrees become classes of their own (four times as many)

    Deviation: ProtoNet rotates before it reduces the image, this loader after; the classes are the same.
    """

    name = "omniglot"
    description = "1,623 handwritten characters of 50 alphabets, 20 drawings each"
    licence = "MIT (Brenden Lake)"
    homepage = "https://github.com/brendenlake/omniglot"
    channels = 1
    image_size = 28
    classes = {"train": 792, "val": 172, "test": 659}
    downloads = (
        Download(f"{_HOME}/images_background.zip", "68d2efa1b9178cc56df9314c21c6e718",
                 path="omniglot/images_background.zip"),
        Download(f"{_HOME}/images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811",
                 path="omniglot/images_evaluation.zip"))
    layout = ("omniglot/images_background.zip and images_evaluation.zip",
              "omniglot/images_background/<Alphabet>/<characterNN>/*.png and the same for images_evaluation")
    protocols = ("background_evaluation", "vinyals")
    inverted = True

    protocol: str = "background_evaluation"
    rotations: bool = False

    def find(self, root: Path) -> Path | None:
        folders = (root / "omniglot", root / "omniglot-py", root)
        return next((f for f in folders if all(_source(f, part) for part in _PARTS)), None)

    def listing(self, where: Path, split: str) -> Listing:
        wanted = self._characters(split)
        files: defaultdict[str, list[tuple[Tree, str]]] = defaultdict(list)
        for part in sorted({part for part, _ in wanted}):
            source = _source(where, part)
            assert source is not None, "`find` saw it"
            tree = open_tree(source)
            for name in tree.names():
                folders = name.split("/")
                if len(folders) >= 3:
                    files["/".join(folders[-3:-1])].append((tree, name))
        names = [name for _, name in wanted]
        need_classes(self, names, files, where)
        return Listing.of_classes(files, names)

    def check_source(self, where: Path) -> None:
        """A re-packed archive has other checksums and the same drawings, so that is worth a warning, not an error."""
        for part, item in zip(_PARTS, self.downloads, strict=True):
            path = _source(where, part)
            if path is not None and path.is_file() and (md5 := md5_of(path)) != item.md5:
                warnings.warn(f"{path} has MD5 {md5}, the published file {item.md5}; all its characters are there, so "
                              "it is used, but it was packed by somebody else", stacklevel=5)

    def load(self, request: Request) -> ImageBank:
        bank = super().load(request)
        sizes = bank.class_sizes()
        if (sizes != 20).any():
            warnings.warn(f"{int((sizes != 20).sum())} characters of omniglot do not have their 20 drawings",
                          stacklevel=3)
        return with_rotations(bank) if self.rotations else bank

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        turns = 4 if self.rotations else 1
        return {split: (c * turns, m * turns) for split, (c, m) in super().counts(root).items()}

    def _characters(self, split: str) -> list[tuple[str, str]]:
        """(part, "Alphabet/characterNN") of the split, in alphabetical order within each part."""
        lists = read_splits("omniglot")
        if split == "all":
            return [row for one in SPLITS for row in self._characters(one)]
        rows = [(home, part, alphabet, number) for home in SPLITS for part, alphabets in lists[home].items()
                for alphabet, (first, last) in alphabets.items() for number in range(first, last + 1)]
        if self.protocol == "vinyals":
            chosen = [row for row in rows if row[0] == split]
        elif split == "test":
            chosen = [row for row in rows if row[1] == "evaluation"]
        else:
            chosen = [row for row in rows if row[1] == "background" and row[0] == split]
        return [(part, f"{alphabet}/character{number:02d}") for _, part, alphabet, number in sorted(
            chosen, key=lambda row: row[1:])]


def with_rotations(bank: ImageBank) -> ImageBank:
    """Each class four times: as it is, and turned counter-clockwise by 90, 180 and 270 degrees."""
    count = len(bank.class_names)
    images = torch.cat([torch.rot90(bank.images, turns, (2, 3)) for turns in range(4)])
    labels = torch.cat([bank.labels + turns * count for turns in range(4)])
    names = [f"{name}/rot{90 * turns:03d}" if turns else name for turns in range(4) for name in bank.class_names]
    files = None if bank.files is None else bank.files * 4
    return replace(bank, images=images, labels=labels, class_names=tuple(names), files=files)


def _source(folder: Path, part: str) -> Path | None:
    """The extracted tree or the zip of one part."""
    choices = (folder / f"images_{part}", folder / f"images_{part}.zip")
    return next((path for path in choices if path.is_dir() or path.is_file()), None)
