"""From a `Subject` to banks: load the data set, build the backbone, extract once, remember."""

from __future__ import annotations

from pathlib import Path

from fewshot.backbones import Backbone, create_backbone, default_options, input_for
from fewshot.backbones.weights import describe_weights
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.features.extract import embed
from fewshot.features.subject import Subject

CACHE = Path("runs/cache")


class FeatureSource:
    """Loads images and embeds them, and remembers both: many runs on the same data and backbone pay once.

    root      folder of the data sets;  cache: folder of extracted features;  progress: show bars
    device    where backbones compute: cpu, cuda, cuda:1, mps, or auto, a GPU where there is one
    """

    def __init__(self, root: str | Path | None = None, cache: str | Path | None = None, progress: bool = False,
                 device: str = "cpu"):
        self.root, self.cache, self.progress, self.device = root, CACHE if cache is None else Path(cache), progress, device
        self._images: dict[str, ImageBank] = {}
        self._features: dict[str, FeatureBank] = {}

    def images(self, subject: Subject) -> ImageBank:
        """The images of `subject`."""
        key = subject.images_key
        if key not in self._images:
            self._images[key] = load_dataset(subject.dataset, subject.split, root=self.root, **subject.data_options)
        return self._images[key]

    def features(self, subject: Subject) -> FeatureBank:
        """The features of `subject`; their provenance names the images and the weights by content."""
        key = subject.features_key
        if key not in self._features:
            images = self.images(subject)
            self._features[key] = embed(images, backbone_for(subject, images), cache=self.cache, progress=self.progress,
                                        crops=subject.crops, device=own_device(self.device))
        return self._features[key]


def backbone_for(subject: Subject, images: ImageBank) -> Backbone:
    """The backbone of `subject`, built for `images`; with the options that the weights file says, where it is one of this
    backbone and the subject does not say others."""
    name, weights, options = subject.backbone, subject.weights, input_for(subject.backbone, images.images)
    if weights is not None and Path(weights).is_file():
        described = describe_weights(weights)
        options |= described["options"] if described["backbone"] == name else {}
    settings = {**options, **subject.backbone_options}
    if weights is not None and weights.startswith("random:"):  # how a record names untrained weights
        return create_backbone(name, seed=int(weights.removeprefix("random:")), **settings)
    return create_backbone(name, weights=weights, **settings)


def options_of_weights(subject: Subject, images: ImageBank | None = None) -> dict:
    """The options of the backbone that its weights file says and that neither the images nor the defaults give: the same
    tensors make other features with another image size or reduction, so that a run's key must have them. Without `images`
    those left out that depend on them."""
    if subject.weights is None or not Path(subject.weights).is_file():
        return {}
    described = describe_weights(subject.weights)
    if described["backbone"] != subject.backbone:
        return {}
    of_images = described["options"] if images is None else input_for(subject.backbone, images.images)
    usual = {**default_options(subject.backbone), **{name: of_images[name] for name in ("channels", "image_size")}}
    return {name: value for name, value in described["options"].items() if usual.get(name) != value}
