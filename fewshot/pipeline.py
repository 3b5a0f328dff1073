"""From a `Run` to feature banks: load the data set, build the backbone, extract once, remember."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fewshot.backbones import create_backbone, default_options, input_for
from fewshot.backbones.weights import describe_weights
from fewshot.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.embed import embed
from fewshot.evaluate import Resolved
from fewshot.learned import FRESH, method_with_weights, with_own
from fewshot.methods.base import Method
from fewshot.run import Run

CACHE = Path("runs/cache")
# Data sets whose classes also occur in ImageNet-1k: an ImageNet-trained backbone has seen such objects with labels.
SEEN_IN_IMAGENET = frozenset({"caltech101", "mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100", "cub", "folder"})


def backbone_for(run: Run, bank: ImageBank):
    """The backbone of `run`, built for the images of `bank`; with the options that the weights file says, where it is one
    of this backbone and the run does not say others."""
    options = input_for(run.backbone, bank.images)
    if run.weights is not None and Path(run.weights).is_file():
        described = describe_weights(run.weights)
        options |= described["options"] if described["backbone"] == run.backbone else {}
    settings = {**options, **run.backbone_options}
    if run.weights is not None and run.weights.startswith("random:"):  # how a stored run names untrained weights
        return create_backbone(run.backbone, seed=int(run.weights.removeprefix("random:")), **settings)
    return create_backbone(run.backbone, weights=run.weights, **settings)


def options_of_weights(run: Run, bank: ImageBank | None = None) -> dict:
    """The options of the backbone that its weights file says and that neither the images nor the defaults give: the same
    tensors make other features with another image size or reduction, so that a run's key must have them. Without `bank`
    those left out that depend on the images."""
    if run.weights is None or not Path(run.weights).is_file():
        return {}
    described = describe_weights(run.weights)
    if described["backbone"] != run.backbone:
        return {}
    of_images = described["options"] if bank is None else input_for(run.backbone, bank.images)
    usual = {**default_options(run.backbone), **{name: of_images[name] for name in ("channels", "image_size")}}
    return {name: value for name, value in described["options"].items() if usual.get(name) != value}


def pretraining_notes(backbone: str, pretrained_on: str | None, dataset: str) -> tuple[str, ...]:
    """The warning that a table must carry when the backbone has seen the evaluated kind of classes."""
    if pretrained_on and dataset in SEEN_IN_IMAGENET:
        contains = "may contain" if dataset == "folder" else "contains"
        return (f"{backbone} was pre-trained on {pretrained_on}, which {contains} classes like those of {dataset}",)
    return ()


class FeatureSource:
    """Loads images and embeds them, and remembers both: many runs on the same data and backbone pay once.

    root      folder of the data sets;  cache: folder of extracted features;  progress: show bars
    """

    def __init__(self, root=None, cache=None, progress: bool = False):
        self.root, self.cache, self.progress = root, CACHE if cache is None else Path(cache), progress
        self._images: dict[str, ImageBank] = {}
        self._features: dict[str, tuple[FeatureBank, str, tuple[str, ...]]] = {}

    def resolve(self, run: Run, method: Method | None = None) -> Resolved:
        """The banks and the method of `run` (or the instance given).

        In the run returned `weights` is the identity of the weights, and `data` and `base` are the content hashes of the
        images, so that equal runs mean equal numbers wherever the files lie.
        """
        images, own = self.images(run), None
        if method is None:
            method, own = method_with_weights(run.method, run.parameters, lambda: backbone_for(run, images), run.ways,
                                              run.weights)
        if method.inputs == "images":
            bank, data, transform = images, images.content_hash, method.backbone.transform
            weights = method.backbone.weights_id
            notes = pretraining_notes(method.backbone.name, method.backbone.pretrained_on, run.dataset)
        else:
            bank, weights, notes = self._embedded(run)
            data, transform = bank.provenance["images_sha256"], None
        if own == FRESH:
            notes += (f"{run.method} has fresh weights of its own: those of the backbone bring none for it",)
        base = self._embedded(dataclasses.replace(run, split="train"))[0] if run.needs_base else None
        resolved = dataclasses.replace(run, weights=with_own(weights, own), data=data,
                                       backbone_options={**options_of_weights(run, images), **run.backbone_options},
                                       base=base.provenance["images_sha256"] if base else None)
        return Resolved(resolved, bank, base, method, transform, notes)

    def images(self, run: Run) -> ImageBank:
        key = json.dumps([run.dataset, run.split, run.data_options], sort_keys=True)
        if key not in self._images:
            self._images[key] = load_dataset(run.dataset, run.split, root=self.root, **run.data_options)
        return self._images[key]

    def _embedded(self, run: Run) -> tuple[FeatureBank, str, tuple[str, ...]]:
        key = json.dumps([run.dataset, run.split, run.data_options, run.backbone, run.weights, run.backbone_options,
                          run.crops], sort_keys=True)
        if key not in self._features:
            images = self.images(run)
            backbone = backbone_for(run, images)
            features = embed(images, backbone, cache=self.cache, progress=self.progress, crops=run.crops)
            notes = pretraining_notes(backbone.name, backbone.pretrained_on, run.dataset)
            self._features[key] = features, backbone.weights_id, notes
        return self._features[key]
