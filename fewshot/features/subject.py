"""`Subject`: what is looked at, which images through which eyes.

Torch is not imported with this module: the command line reads the fields for its help.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fewshot.core.frozen import FrozenDict
from fewshot.core.settings import options, setting, settle, text


def _split(name: str, value: Any) -> str:
    from fewshot.datasets.base import check_split

    check_split(value)
    return value


def _crops(name: str, value: Any) -> str:
    from fewshot.features.crops import parse_crops

    return str(parse_crops(text()(name, value)) or "")


@dataclass(frozen=True)
class Subject:
    """Images and the backbone that makes features of them.

    dataset, split       names; data_options are passed to `load_dataset`
    backbone, weights    name of the backbone (made with backbone_options) and its weights: a file, or a name such as
                         "random"; None for the backbone's default
    crops                random crops of every image instead of the whole, "mean(30)", "weighted(60)" or "keep(7)"
                         (`features/crops.py`); kept with all settings written out
    """

    dataset: str = setting("glyphs", "data set, see `fewshot data`; torchvision:NAME, hf:NAME; or the path of a "
                           "folder of class folders, a .csv, .tar or .parquet", text(),
                           shown=True)
    split: str = setting("test", "train, val, test or all (default: test; all for a folder without a split file)", _split,
                         shown=True)
    backbone: str = setting("conv4", "backbone, see `fewshot list backbones`", text(), shown=True)
    weights: str | None = setting(None, "weights file (.safetensors) or a name such as random; left out: those of ImageNet "
                                  "for efficientnet_lite0, else untrained", text(or_none=True))
    crops: str = setting("", "random crops of every image: mean(30) averages their features, weighted(60) by their likeness "
                         "to the whole image, keep(7) has them side by side", _crops, shown=True, later=True)
    data_options: FrozenDict = setting({}, "an option of the data set, e.g. protocol=vinyals, splits=FILE; repeat for more",
                                       options, flag="--data-option", metavar="NAME=VALUE")
    backbone_options: FrozenDict = setting({}, "an option of the backbone, e.g. width=32, reduce=flatten; repeat for more",
                                           options, flag="--backbone-option", metavar="NAME=VALUE")

    def __post_init__(self) -> None:
        settle(self)

    @property
    def images_key(self) -> str:
        """Equal for subjects with the same images."""
        return json.dumps([self.dataset, self.split, self.data_options], sort_keys=True)

    @property
    def features_key(self) -> str:
        """Equal for subjects with the same features."""
        return json.dumps([self.images_key, self.backbone, self.weights, self.backbone_options, self.crops], sort_keys=True)
