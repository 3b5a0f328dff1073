"""From a `Run` to feature banks: load the data set, build the backbone, extract once, remember."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fewshot.backbones import create_backbone, input_for
from fewshot.banks import FeatureBank, ImageBank
from fewshot.datasets import load_dataset
from fewshot.embed import embed
from fewshot.methods.base import create_method
from fewshot.run import Run
from fewshot.transforms import parse_transforms

CACHE = Path("runs/cache")
# Data sets whose classes also occur in ImageNet-1k: an ImageNet-trained backbone has seen such objects with labels.
SEEN_IN_IMAGENET = frozenset({"caltech101", "mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100", "cub", "folder"})


def backbone_for(run: Run, bank: ImageBank):
    """The backbone of `run`, built for the images of `bank`."""
    settings = {**input_for(run.backbone, bank.images), **run.backbone_options}
    if run.weights is not None and run.weights.startswith("random:"):  # how a stored run names untrained weights
        return create_backbone(run.backbone, seed=int(run.weights.removeprefix("random:")), **settings)
    return create_backbone(run.backbone, weights=run.weights, **settings)


def pretraining_notes(backbone, dataset: str) -> tuple[str, ...]:
    """The warning that a table must carry when the backbone has seen the evaluated kind of classes."""
    if backbone.pretrained_on and dataset in SEEN_IN_IMAGENET:
        return (f"{backbone.name} was pre-trained on {backbone.pretrained_on}, which contains classes like those of "
                f"{dataset}",)
    return ()


def banks_for(run: Run, *, root=None, cache=None, progress: bool = False,
              ) -> tuple[FeatureBank, FeatureBank | None, Run, tuple[str, ...]]:
    """(features of the split, features of the base classes where needed, the run with identities, notes).

    In the returned run `weights` is the sha256 of the weights and `data` the content hash of the images, so that equal
    runs mean equal numbers wherever the files lie.
    """
    cache = CACHE if cache is None else Path(cache)
    images = load_dataset(run.dataset, run.split, root=root, **run.data_options)
    backbone = backbone_for(run, images)
    features = embed(images, backbone, cache=cache, progress=progress)
    base = None
    if create_method(run.method, **run.parameters).needs_base or parse_transforms(run.transforms).needs_base:
        base = embed(load_dataset(run.dataset, "train", root=root, **run.data_options), backbone, cache=cache,
                     progress=progress)
    resolved = dataclasses.replace(run, weights=backbone.weights_id, data=images.content_hash)
    return features, base, resolved, pretraining_notes(backbone, run.dataset)
