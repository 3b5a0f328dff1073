"""Data sets of the vision-language literature: all classes in every split, the images divided as published with CoOp.

Zhou et al. 2022 (CoOp, arXiv:2109.01134; github.com/KaiyangZhou/CoOp, DATASETS.md) give for each set a file that lists
training, validation and test images with labels and class names.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fewshot.core.errors import FewshotError
from fewshot.datasets.base import DATASETS, SPLITS
from fewshot.datasets.files import Tree, open_tree
from fewshot.datasets.images import ImageFiles, Listing

_SOURCE = "github.com/KaiyangZhou/CoOp, DATASETS.md"


def published_listing(lists_file: Path, files: Iterable[tuple[Tree, str]], split: str) -> Listing:
    """The images that a published split file names, with its labels and class names.

    files   whatever there is; one is found by the end of its name, as many parts as the file gives
    split   "all": those of all splits, which then say which part each image is of

    Raises FewshotError for a file that is missing or no such file, and for images that are not there.
    """
    try:
        lists = json.loads(lists_file.read_text("utf-8"))
        wanted = SPLITS if split == "all" else (split,)
        rows = [tuple(row) for part in wanted for row in lists[part]]
        parts = [SPLITS.index(part) for part in wanted for _ in lists[part]]
        names = {int(label): str(name) for part in SPLITS for _, label, name in lists[part]}
        class_names = tuple(names[label] for label in range(len(names)))
    except FileNotFoundError:
        raise FewshotError(f"the published division needs {lists_file}; get it from {_SOURCE} and put it there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FewshotError(f"{lists_file} is not the published split file ({error}); download it again") from None
    ends = _by_ends(files, {str(file).count("/") + 1 for file, _, _ in rows})
    missing = [file for file, _, _ in rows if file not in ends]
    if missing:
        raise FewshotError(f"{len(missing)} images that {lists_file.name} names are not there, the first is {missing[0]}; "
                           "unpack or download the set again")
    return Listing([ends[file] for file, _, _ in rows], [int(label) for _, label, _ in rows], class_names,
                   parts if split == "all" else None)


def _by_ends(files: Iterable[tuple[Tree, str]], depths: set[int]) -> dict[str, tuple[Tree, str]]:
    """Last parts of the name of each file, as many as one of `depths` -> file."""
    return {"/".join(name.split("/")[-depth:]): (tree, name) for tree, name in files for depth in depths}


class DividedImages(ImageFiles):
    """A data set whose splits have all classes each, and divide their images.

    folder       of the set below the data root;  images: of its images in there, or a zip of that name
    lists_file   the published division
    number       of classes
    """

    folder: ClassVar[str]
    images: ClassVar[str]
    lists_file: ClassVar[str]
    number: ClassVar[int]
    image_size = 224

    def __init_subclass__(cls, **options: object):
        super().__init_subclass__(**options)
        cls.classes = dict.fromkeys(SPLITS, cls.number)
        cls.layout = (f"{cls.folder}/{cls.images}/...", f"{cls.folder}/{cls.lists_file} (from {_SOURCE})")

    def find(self, root: Path) -> Path | None:
        places = (root / self.folder / place for place in (self.images, f"{self.images}.zip"))
        return next((place for place in places if place.exists()), None)

    def listing(self, where: Path, split: str) -> Listing:
        tree = open_tree(where)
        lists_file = where.parents[self.images.count("/")] / self.lists_file
        return published_listing(lists_file, ((tree, name) for name in tree.names()), split)


@DATASETS.register("dtd")
@dataclass(frozen=True)
class DTD(DividedImages):
    """47 textures, 5,640 images (Cimpoi et al. 2014), CoOp's division 2,820 / 1,128 / 1,692."""

    name, number = "dtd", 47
    description = "47 textures, 120 photographs each; images divided"
    licence = "research use (VGG, Oxford)"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    folder, images, lists_file = "dtd", "images", "split_zhou_DescribableTextures.json"
    in_imagenet = "may contain"


@DATASETS.register("eurosat")
@dataclass(frozen=True)
class EuroSAT(DividedImages):
    """10 kinds of land use seen by satellite, 27,000 images of 64 pixels (Helber et al. 2019), 13,500 / 5,400 / 8,100."""

    name, number = "eurosat", 10
    description = "10 kinds of land use from space, RGB; images divided"
    licence = "MIT"
    homepage = "https://github.com/phelber/EuroSAT"
    folder, images, lists_file = "eurosat", "2750", "split_zhou_EuroSAT.json"
    image_size = 64


@DATASETS.register("oxford_flowers")
@dataclass(frozen=True)
class OxfordFlowers(DividedImages):
    """102 flowers (Nilsback and Zisserman 2008), 4,093 / 1,633 / 2,463."""

    name, number = "oxford_flowers", 102
    description = "102 flowers, 40 to 258 photographs each; images divided"
    licence = "research use (VGG, Oxford)"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    folder, images, lists_file = "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"
    in_imagenet = "contains"


@DATASETS.register("oxford_pets")
@dataclass(frozen=True)
class OxfordPets(DividedImages):
    """37 breeds of cats and dogs (Parkhi et al. 2012), 2,944 / 736 / 3,669."""

    name, number = "oxford_pets", 37
    description = "37 breeds of cats and dogs; images divided"
    licence = "CC BY-SA 4.0"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    folder, images, lists_file = "oxford_pets", "images", "split_zhou_OxfordPets.json"
    in_imagenet = "contains"


@DATASETS.register("stanford_cars")
@dataclass(frozen=True)
class StanfordCars(DividedImages):
    """196 makes of cars (Krause et al. 2013), 6,509 / 1,635 / 8,041. The folder itself has cars_train and cars_test."""

    name, number = "stanford_cars", 196
    description = "196 makes, models and years of cars; images divided"
    licence = "research use (Stanford)"
    homepage = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
    folder, images, lists_file = "stanford_cars", ".", "split_zhou_StanfordCars.json"
    in_imagenet = "may contain"

    def find(self, root: Path) -> Path | None:
        return root / self.folder if (root / self.folder / "cars_train").is_dir() else None

    def listing(self, where: Path, split: str) -> Listing:
        tree = open_tree(where)
        return published_listing(where / self.lists_file, ((tree, name) for name in tree.names()), split)


@DATASETS.register("ucf101")
@dataclass(frozen=True)
class UCF101(DividedImages):
    """101 human actions, the middle frame of each video (Soomro et al. 2012), 7,639 / 1,898 / 3,783."""

    name, number = "ucf101", 101
    description = "101 human actions, middle frames of videos; images divided"
    licence = "research use (UCF)"
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"
    folder, images, lists_file = "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"


@DATASETS.register("food101")
@dataclass(frozen=True)
class Food101(DividedImages):
    """101 dishes (Bossard et al. 2014), 50,500 / 20,200 / 30,300."""

    name, number = "food101", 101
    description = "101 dishes, 1,000 photographs each; images divided"
    licence = "research use (ETH Zürich)"
    homepage = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    folder, images, lists_file = "food-101", "images", "split_zhou_Food101.json"
    in_imagenet = "may contain"


@DATASETS.register("sun397")
@dataclass(frozen=True)
class SUN397(DividedImages):
    """397 scenes (Xiao et al. 2010), 15,880 / 3,970 / 19,850."""

    name, number = "sun397", 397
    description = "397 scenes; images divided"
    licence = "research use (Princeton)"
    homepage = "https://vision.princeton.edu/projects/2010/SUN/"
    folder, images, lists_file = "sun397", "SUN397", "split_zhou_SUN397.json"
    in_imagenet = "may contain"


@DATASETS.register("fgvc_aircraft")
@dataclass(frozen=True)
class FGVCAircraft(DividedImages):
    """100 variants of aircraft (Maji et al. 2013), 3,334 / 3,333 / 3,333, divided by the set's own lists."""

    name, number = "fgvc_aircraft", 100
    description = "100 variants of aircraft, 100 photographs each; images divided"
    licence = "research use (VGG, Oxford)"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    folder, images, lists_file = "fgvc_aircraft", "images", "images_variant_{train,val,test}.txt, variants.txt"

    def listing(self, where: Path, split: str) -> Listing:
        names = _lines(where.parent / "variants.txt")
        tree, found = open_tree(where), []
        stems = {name.rpartition("/")[2].rpartition(".")[0]: name for name in tree.names()}
        for number, part in enumerate(SPLITS):
            if split in (part, "all"):
                for line in _lines(where.parent / f"images_variant_{part}.txt"):
                    image, _, variant = line.partition(" ")
                    if image not in stems or variant not in names:
                        raise FewshotError(f"images_variant_{part}.txt names {line!r}, of which {where} has no image or "
                                           "variants.txt no variant; unpack the set again")
                    found.append(((tree, stems[image]), names.index(variant), number))
        files, labels, parts = (list(column) for column in zip(*found, strict=True))
        return Listing(files, labels, tuple(names), parts if split == "all" else None)


@DATASETS.register("imagenet")
@dataclass(frozen=True)
class ImageNet(DividedImages):
    """1,000 classes of ImageNet (Deng et al. 2009): the training images, and the validation images as the test set, as this
    literature uses them. There are no others to validate on: split val is empty, and protocol all_classes takes validation
    images from those for training."""

    name, number = "imagenet", 1000
    description = "1,000 classes of ImageNet; its validation images are the test set"
    licence = "ImageNet terms of access (non-commercial research)"
    homepage = "https://www.image-net.org"
    folder, images, lists_file = "imagenet", "images", 'classnames.txt ("n01440764 tench" a line)'
    in_imagenet = "contains"

    def listing(self, where: Path, split: str) -> Listing:
        lines = [line.partition(" ") for line in _lines(where.parent / "classnames.txt")]
        places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # (train or val, WordNet id) -> names
        tree = open_tree(where)
        for name in tree.names():
            pieces = name.split("/")
            if len(pieces) >= 3:
                places[pieces[-3], pieces[-2]].append(name)
        files: list[tuple[Tree, str]] = []
        labels: list[int] = []
        parts: list[int] = []
        for number, (part, there) in enumerate((("train", "train"), ("val", ""), ("test", "val"))):
            for label, (wnid, _, _) in enumerate(lines if split in (part, "all") and there else ()):
                if not places[there, wnid]:
                    raise FewshotError(f"{where}/{there} has no images of {wnid}; unpack ImageNet again")
                files += [(tree, name) for name in places[there, wnid]]
                labels += [label] * len(places[there, wnid])
                parts += [number] * len(places[there, wnid])
        if not files:
            raise FewshotError("ImageNet's validation images are its test set, so there is no split val; load split all and "
                               "take validation images from those for training")
        return Listing(files, labels, tuple(name for _, _, name in lines), parts if split == "all" else None)

    def counts(self, root: Path) -> dict[str, tuple[int, int]]:
        listings = {split: self.listing(self.require(root), split) for split in ("train", "test")}
        return {split: (len(one.class_names), len(one.files)) for split, one in listings.items()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise FewshotError(f"{path} is missing; unpack the set again, it comes with it or from {_SOURCE}") from None
