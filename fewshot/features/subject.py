"""`Subject`: what is looked at, which images through which eyes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from fewshot.features.crops import parse_crops


@dataclass(frozen=True)
class Subject:
    """Images and the backbone that makes features of them.

    dataset, split       names; data_options are passed to `load_dataset`
    backbone, weights    name of the backbone (made with backbone_options) and its weights: a file, or a name such as
                         "random"; None for the backbone's default
    crops                random crops of every image instead of the whole, "mean(30)" or "keep(7)" (`features/crops.py`);
                         kept with all settings written out
    """

    dataset: str = "glyphs"
    split: str = "test"
    backbone: str = "conv4"
    weights: str | None = None
    crops: str = ""
    data_options: dict = field(default_factory=dict)
    backbone_options: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "crops", str(parse_crops(self.crops) or ""))

    @property
    def images_key(self) -> str:
        """Equal for subjects with the same images."""
        return json.dumps([self.dataset, self.split, self.data_options], sort_keys=True)

    @property
    def features_key(self) -> str:
        """Equal for subjects with the same features."""
        return json.dumps([self.images_key, self.backbone, self.weights, self.backbone_options, self.crops], sort_keys=True)
