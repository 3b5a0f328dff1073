"""CUB-200-2011: photographs of 200 bird species."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fewshot.datasets.base import DATASETS, SPLITS, classes_of, read_splits
from fewshot.datasets.files import Download, Tree, open_tree
from fewshot.datasets.images import ImageFiles, Listing, need_classes


@DATASETS.register("cub")
@dataclass(frozen=True)
class CUB(ImageFiles):
    """Whole photographs; bounding boxes are not used.

    protocol   "100_50_50": Chen et al. 2019 (every second species trains, the rest alternate between val and test)
               "140_30_30": Meta-Dataset, also used by easyfsl

    Some photographs are also in ImageNet, so backbones pretrained there may have seen them.
    """

    name = "cub"
    description = "11,788 photographs of 200 bird species"
    licence = "images from Flickr, non-commercial research and education only; class lists MIT, Apache-2.0"
    homepage = "https://data.caltech.edu/records/65de6-vp158"
    in_imagenet = "contains"
    classes = {"train": 100, "val": 50, "test": 50}
    downloads = (Download("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                          "97eceeb196236b17998738112f37df78"),)
    layout = ("cub/CUB_200_2011/images/<NNN.Species>/*.jpg (tar xzf CUB_200_2011.tgz)",)
    protocols = ("100_50_50", "140_30_30")

    protocol: str = "100_50_50"

    def find(self, root: Path) -> Path | None:
        first = read_splits("cub")["classes"][0]
        folders = (base / inner / "images" for base in (root / "cub", root / "CUB", root)
                   for inner in ("CUB_200_2011", ""))
        return next((f for f in folders if (f / first).is_dir()), None)

    def listing(self, where: Path, split: str) -> Listing:
        lists = read_splits("cub")
        names = {part: [lists["classes"][number - 1] for number in lists[self.protocol][part]] for part in SPLITS}
        tree = open_tree(where)
        files: defaultdict[str, list[tuple[Tree, str]]] = defaultdict(list)
        for name in tree.names():
            files[name.split("/")[0]].append((tree, name))
        wanted = classes_of(names, split)
        need_classes(self, wanted, files, where)
        return Listing.of_classes(files, wanted)
