"""From a `Run` to what it is evaluated on: banks, weights and the method, found in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.run import Run
from fewshot.features.transforms import parse_transforms
from fewshot.methods.contract import METHODS, Method, create_method, method_parameters

if TYPE_CHECKING:
    from fewshot.features.source import FeatureSource

# Data sets whose classes also occur in ImageNet-1k: an ImageNet-trained backbone has seen such objects with labels.
SEEN_IN_IMAGENET = frozenset({"caltech101", "mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100", "cub", "folder"})


@dataclass(frozen=True, eq=False)
class Resolved:
    """A run whose data and weights are at hand.

    run         with the identities of data and weights, as results are stored
    bank        of the evaluated classes: images for a method that adapts to images, else features
    base_bank   features of the base classes, where the run needs them
    method      not yet fitted to the base classes
    transform   from the stored images to what the method takes, for a bank of images
    notes       warnings a table must carry
    """

    run: Run
    bank: FeatureBank | ImageBank
    base_bank: FeatureBank | None
    method: Method
    transform: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()


def ready(resolved: Resolved) -> tuple[Method, Callable[[Episodes], Episodes], bool]:
    """(method fitted to the base classes, what its episodes pass before, whether either looks at all queries at once)."""
    method, chain = resolved.method, parse_transforms(resolved.run.transforms).fit(resolved.base_bank)
    if method.needs_base:
        method = method.fit(chain.bank(_required(resolved.base_bank, method)))
    prepare = chain if resolved.transform is None else partial(Episodes.with_features, transform=resolved.transform)
    return method, prepare, method.setting == "transductive" or chain.transductive


def resolve(run: Run, bank: FeatureBank | ImageBank | None = None, base_bank: FeatureBank | None = None, *,
            method: Method | None = None, root=None, cache=None, source: FeatureSource | None = None,
            progress: bool = False, notes: tuple[str, ...] = ()) -> Resolved:
    """Find what `run` needs: the banks given or, without them, the data set, backbone and weights that it names; and its
    method, or the instance given. Raises FewshotError where these do not fit together."""
    run = run if method is None else _of_instance(run, method)
    if bank is None:
        from fewshot.features.source import FeatureSource  # loads backbones: only where images are needed

        resolved = _from_images(run, method, source or FeatureSource(root, cache, progress))
    else:
        method = method or create_method(run.method, **run.parameters)
        transform = None
        if method.inputs == "images":
            transform = getattr(getattr(method, "backbone", None), "transform", None)
        resolved = Resolved(_labelled(run, bank, base_bank), bank, base_bank, method, transform, notes)
    wanted = "images" if isinstance(resolved.bank, ImageBank) else "features"
    if resolved.method.inputs != wanted:
        raise FewshotError(f"{run.method} takes {resolved.method.inputs}, and the bank holds {wanted}; "
                           + ("give a data set, or a bank of images with a trained learner as method=" if wanted ==
                              "features" else "embed the images first (fewshot.embed)"))
    if resolved.method.needs_backbone:
        raise FewshotError(f"{run.method} with these parameters has weights of its own, which a bank does not bring along; "
                           "give the trained one as method=, or leave out bank= and name the weights file in the run")
    for name in ("transforms", "crops") if wanted == "images" else ():
        if getattr(run, name):
            raise FewshotError(f"{name}={getattr(run, name)!r} are for features; {run.method} takes images: leave them out")
    return resolved


def _of_instance(run: Run, method: Method) -> Run:
    """`run` with the name and hyper-parameters of a method that was given ready made, and the backbone that it holds."""
    settings = getattr(method, "settings", method)  # a learner keeps them apart
    name = next((name for name in METHODS if METHODS[name] is type(settings)), None)
    if name is not None:
        parameters = {key: getattr(settings, key) for key in method_parameters(name)}
        run = dataclasses.replace(run, method=name, parameters=parameters)
    held = getattr(method, "backbone", None)
    if hasattr(held, "weights_id"):
        run = dataclasses.replace(run, backbone=held.name, weights=held.weights_id)
    return run


def _labelled(run: Run, bank: FeatureBank | ImageBank, base_bank: FeatureBank | None) -> Run:
    """`run` with the identities of the banks it was given."""
    for name, given, kinds in (("bank", bank, (FeatureBank, ImageBank)), ("base_bank", base_bank, FeatureBank)):
        if given is not None and not isinstance(given, kinds):
            raise FewshotError(f"{name} is a {type(given).__name__}; pass a FeatureBank (fewshot.embed(images, backbone))")
    if base_bank is not None:
        if base_bank.split == "test" or base_bank.identity == bank.identity:
            raise FewshotError(f"base_bank holds split {base_bank.split!r} of {base_bank.name}; statistics come from base "
                               "classes (split 'train'), never from those that are evaluated")
        if base_bank.features.shape[1] != bank.features.shape[1]:
            raise FewshotError(f"base_bank has {base_bank.features.shape[1]} features an item, bank "
                               f"{bank.features.shape[1]}; extract both with the same backbone")
    if isinstance(bank, ImageBank):
        return dataclasses.replace(run, data=bank.content_hash, dataset=bank.name, split=bank.split)
    made_by = bank.provenance.get("backbone", "features" if run.backbone == Run.backbone else run.backbone)
    return dataclasses.replace(run, data=bank.content_hash, dataset=bank.name, split=bank.split, backbone=made_by,
                               weights=bank.provenance.get("weights_id", run.weights),
                               crops=bank.provenance.get("crops", ""),
                               base=base_bank.content_hash if base_bank is not None and run.needs_base else None)


def _required(base_bank: FeatureBank | None, method: Method) -> FeatureBank:
    if base_bank is None:
        raise FewshotError(f"{type(method).__name__} needs statistics of the base classes: pass base_bank=..., or choose "
                           "settings that do without (e.g. norm='l2n')")
    return base_bank


def _from_images(run: Run, method: Method | None, source: FeatureSource) -> Resolved:
    """Of the data set, backbone and weights that `run` names. In the run of the result `weights` is the identity of the
    weights, and `data` and `base` are the content hashes of the images, so that equal runs mean equal numbers wherever the
    files lie."""
    from fewshot.features.source import backbone_for, options_of_weights
    from fewshot.methods.bases.own_weights import FRESH, method_with_weights, with_own

    subject = run.subject
    images, own = source.images(subject), None
    if method is None:
        method, own = method_with_weights(run.method, run.parameters, lambda: backbone_for(subject, images), run.ways,
                                          run.weights)
    if method.inputs == "images":
        bank, data, transform = images, images.content_hash, method.backbone.transform
        weights = method.backbone.weights_id
        notes = pretraining_notes(method.backbone.name, method.backbone.pretrained_on, run.dataset)
    else:
        bank, transform = source.features(subject), None
        data, weights = bank.provenance["images_sha256"], bank.provenance["weights_id"]
        notes = pretraining_notes(run.backbone, bank.provenance["pretrained_on"], run.dataset)
    if own == FRESH:
        notes += (f"{run.method} has fresh weights of its own: those of the backbone bring none for it",)
    base = source.features(dataclasses.replace(subject, split="train")) if run.needs_base else None
    named = dataclasses.replace(run, weights=with_own(weights, own), data=data,
                                backbone_options={**options_of_weights(subject, images), **run.backbone_options},
                                base=base.provenance["images_sha256"] if base else None)
    return Resolved(named, bank, base, method, transform, notes)


def pretraining_notes(backbone: str, pretrained_on: str | None, dataset: str) -> tuple[str, ...]:
    """The warning that a table must carry when the backbone has seen the evaluated kind of classes."""
    if pretrained_on and dataset in SEEN_IN_IMAGENET:
        contains = "may contain" if dataset == "folder" else "contains"
        return (f"{backbone} was pre-trained on {pretrained_on}, which {contains} classes like those of {dataset}",)
    return ()
