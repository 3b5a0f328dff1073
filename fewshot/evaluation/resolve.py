"""From a `Run` to what is evaluated: banks, weights and the method, found in one place, and the `Record` of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets.base import DATASETS
from fewshot.episodes.saved import EpisodeList
from fewshot.episodes.types import Episodes
from fewshot.evaluation.record import Record
from fewshot.evaluation.run import Run, on_dataset
from fewshot.methods.contract import METHODS, Method, method_parameters

if TYPE_CHECKING:
    from fewshot.features.source import FeatureSource


CPU = torch.device("cpu")
_FAR_BRIGHTNESS = 0.3  # of white: beyond what sets of photographs differ by, below the difference to their negatives


@dataclass(frozen=True, eq=False)
class Resolved:
    """A run whose data and weights are at hand.

    run         the request, its protocol and hyper-parameters complete
    record      what a result says of it: weights, images and features by their identity
    bank        of the evaluated classes: images for a method that adapts to images, else features
    base_bank   features of the base classes, where the run needs them
    method      not yet fitted to the base classes
    image_transform   from the stored images to what the method takes, for a bank of images
    notes       warnings a table must carry
    title       what own data are called (`shown_name` of their bank), "" for others
    """

    run: Run
    record: Record
    bank: FeatureBank | ImageBank
    base_bank: FeatureBank | None
    method: Method
    image_transform: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()
    title: str = ""


def resolve(run: Run, bank: FeatureBank | ImageBank | None = None, base_bank: FeatureBank | None = None, *,
            method: Method | None = None, episodes: EpisodeList | None = None, source: FeatureSource | None = None,
            notes: tuple[str, ...] = ()) -> Resolved:
    """Find what `run` needs: the banks given or, without them, the data set, backbone and weights that it names; and its
    method, or the instance given. Raises FewshotError where these do not fit together."""
    if bank is None:
        from fewshot.features.source import FeatureSource  # loads backbones: only where images are needed

        resolved = _from_images(run, method, source or FeatureSource(), episodes)
    else:
        resolved = _from_banks(run, bank, base_bank, method)
    values = _instance_values(method) | ({"episode_list": episodes.fingerprint} if episodes is not None else {})
    resolved = dataclasses.replace(resolved, record=resolved.record.changed(**values),
                                   notes=(*resolved.notes, *(note for note in notes if note not in resolved.notes)))
    wanted, name = "images" if isinstance(resolved.bank, ImageBank) else "features", resolved.record.method
    if resolved.method.inputs != wanted:
        raise FewshotError(f"{name} takes {resolved.method.inputs}, and the bank holds {wanted}; "
                           + ("give a data set, or a bank of images with a trained learner as method=" if wanted ==
                              "features" else "embed the images first (fewshot.embed)"))
    if resolved.method.needs_backbone:
        raise FewshotError(f"{name} with these parameters has weights of its own, which a bank does not bring along; "
                           "give the trained one as method=, or leave out bank= and name the weights file in the run")
    for setting in ("transforms", "crops") if wanted == "images" else ():
        if getattr(run, setting):
            raise FewshotError(f"{setting}={getattr(run, setting)!r} are for features; {name} takes images: leave them out")
    return resolved


def as_trained(run: Run) -> Run:
    """`run` with the hyper-parameters that the method in its weights file was trained with, where it gives no others."""
    if run.weights is None or not run.spec.may_be_trained:
        return run
    from fewshot.methods.bases.own_weights import trained_parameters  # loads backbones

    return dataclasses.replace(run, spec=run.spec.with_trained(trained_parameters(run.method, run.weights)))


def ready(resolved: Resolved, device: torch.device = CPU) -> tuple[Method, Callable[[Episodes], Episodes], bool]:
    """(method fitted to the base classes, what its episodes pass before, whether either looks at all queries at once); the
    tensors of both on `device`."""
    method, chain = resolved.method, resolved.run.spec.chain.fit(resolved.base_bank)
    if method.needs_base:
        method = method.fit(chain.bank(_required(resolved.base_bank, method)))
    prepare = moved(chain, device) if resolved.image_transform is None else \
        partial(Episodes.with_features, transform=resolved.image_transform)
    return moved(method, device), prepare, method.setting == "transductive" or chain.transductive


def moved(thing: Any, device: torch.device) -> Any:
    """`thing`, a method or what dataclasses hold, with all its tensors on `device`; itself where that is the CPU."""
    if device == CPU:
        return thing
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to(device)
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, tuple):
        return tuple(moved(each, device) for each in thing)
    if not dataclasses.is_dataclass(thing):
        return thing
    found = copy.copy(thing)
    for field in dataclasses.fields(thing):
        object.__setattr__(found, field.name, moved(getattr(thing, field.name), device))
    return found


def pretraining_notes(backbone: str, pretrained_on: str | None, dataset: str, shown: str = "") -> tuple[str, ...]:
    """The warning that a table must carry when the backbone has seen the evaluated kind of classes, or may have; `shown`:
    what own data are called."""
    has = DATASETS[dataset].in_imagenet if dataset in DATASETS else "may contain"
    return (f"{backbone} was pre-trained on {pretrained_on}, which {has} classes like those of {shown or dataset}",) \
        if pretrained_on and has else ()


def _notes(backbone: str, pretrained_on: str | None, seen: list[dict], bank: FeatureBank | ImageBank,
           images: str) -> tuple[str, ...]:
    """What a table must say of weights that may have seen the classes of `bank`; images: content hash of these."""
    from fewshot.backbones.seen import leak_notes, present_classes  # loads backbones

    return (*leak_notes(backbone, seen, bank.name, bank.split, images, present_classes(bank)),
            *pretraining_notes(backbone, pretrained_on, bank.name, bank.shown_name))


def repetition_notes(bank: FeatureBank | ImageBank) -> tuple[str, ...]:
    """The warning that a table must carry where items are copies of each other."""
    inside, across = bank.repeated
    found = [f"{inside:,} of {len(bank):,} {bank.items} are identical to another one of their class"] if inside else []
    found += [f"{across:,} of {len(bank):,} {bank.items} are identical to one of another class"] if across else []
    return (" and ".join(found) + ": answers on copies say nothing of the method",) if found else ()


def brightness_notes(images: ImageBank, weights: str | None) -> tuple[str, ...]:
    """The warning where the images are far lighter or darker than those that the weights were trained on, which their file
    knows."""
    from fewshot.backbones.weights import provenance_of

    known = provenance_of(weights).get("brightness") if weights is not None and Path(weights).is_file() else None
    if known is None or abs(images.brightness - known) <= _FAR_BRIGHTNESS:
        return ()
    return (f"the images' mean brightness is {images.brightness:.2f}, that of the images that the weights were trained on "
            f"{known:.2f}: where ink and paper are the other way round, own folders take --data-option invert=True",)


def check_images(run: Run, source: FeatureSource, episodes: EpisodeList | None = None) -> ImageBank:
    """The images of `run`, or FewshotError for what they show to be impossible: best known before they are embedded."""
    images = source.images(run.subject)
    if episodes is None:
        run.sampler(images)
    if run.spec.needs_base:
        source.images(dataclasses.replace(run.subject, split="train"))
    return images


def _from_banks(run: Run, bank: FeatureBank | ImageBank, base_bank: FeatureBank | None, method: Method | None) -> Resolved:
    for name, given, kinds in (("bank", bank, (FeatureBank, ImageBank)), ("base_bank", base_bank, FeatureBank)):
        if given is not None and not isinstance(given, kinds):
            raise FewshotError(f"{name} is a {type(given).__name__}; pass a FeatureBank (fewshot.embed(images, backbone))")
    if base_bank is not None:
        _check_base(bank, base_bank)
    # A copy leaves nothing to a data set any more: the run must not fill it in for its own.
    run = dataclasses.replace(run, protocol=dataclasses.replace(on_dataset(run.protocol, bank.name)))
    method, transform = method or run.spec.make(), None
    notes: tuple[str, ...] = ()
    values: dict[str, Any] = {"data": bank.content_hash, "dataset": bank.name, "split": bank.split}
    if isinstance(bank, ImageBank):
        held = getattr(method, "backbone", None)
        transform = getattr(held, "transform", None) if method.inputs == "images" else None
        if held is not None and hasattr(held, "weights_id"):
            notes = _notes(held.name, held.pretrained_on, held.seen, bank, bank.content_hash)
    else:
        made_by = bank.provenance
        unnamed = "features" if run.backbone == Run().backbone else run.backbone
        values |= {"backbone": made_by.get("backbone", unnamed), "weights": made_by.get("weights_id", run.weights),
                   "crops": made_by.get("crops", ""),
                   "base": base_bank.content_hash if base_bank is not None and run.spec.needs_base else None}
        notes = _notes(values["backbone"], made_by.get("pretrained_on"), made_by.get("seen", []), bank,
                       made_by.get("images_sha256", ""))
    return Resolved(run, run.record(**values), bank, base_bank, method, transform, notes + repetition_notes(bank),
                    bank.shown_name if bank.title else "")


def _from_images(run: Run, method: Method | None, source: FeatureSource, episodes: EpisodeList | None) -> Resolved:
    """Of the data set, backbone and weights that `run` names. In the record `weights` is the identity of the weights, and
    `data` and `base` are the content hashes of the images, so that equal records mean equal numbers wherever files lie."""
    from fewshot.features.source import backbone_for, options_of_weights
    from fewshot.methods.bases.own_weights import FRESH, method_with_weights, with_own

    subject = run.subject
    images, own = check_images(run, source, episodes), None
    if method is None:
        run = as_trained(run)
        method, own = method_with_weights(run.method, run.spec.make(), lambda: backbone_for(subject, images),
                                          run.protocol.settings().get("ways"), run.weights)
    bank: FeatureBank | ImageBank
    if method.inputs == "images":
        learner: Any = method  # it holds its backbone, which no other method has
        held = learner.backbone
        bank, data, transform, weights = images, images.content_hash, held.transform, held.weights_id
        notes = _notes(held.name, held.pretrained_on, held.seen, images, data)
    else:
        bank = features = source.features(subject)
        data, weights, transform = features.provenance["images_sha256"], features.provenance["weights_id"], None
        notes = _notes(run.backbone, features.provenance["pretrained_on"], features.provenance.get("seen", []), bank, data)
    notes += repetition_notes(images) + brightness_notes(images, run.weights)
    if own == FRESH:
        notes += (f"{run.method} has fresh weights of its own: those of the backbone bring none for it",)
    base = source.features(dataclasses.replace(subject, split="train")) if run.spec.needs_base else None
    values = {"weights": with_own(weights, own), "data": data, "base": base.provenance["images_sha256"] if base else None,
              "backbone_options": {**options_of_weights(subject, images), **run.backbone_options}}
    return Resolved(run, run.record(**values), bank, base, method, transform, notes,
                    images.shown_name if images.title else "")


def _instance_values(method: Method | None) -> dict[str, Any]:
    """What a record says of a method that was given ready made: its name, hyper-parameters, and the backbone it holds."""
    if method is None:
        return {}
    settings = getattr(method, "settings", method)  # a learner keeps them apart
    name = next((name for name in METHODS if METHODS[name] is type(settings)), None)
    values: dict[str, Any] = {} if name is None else {
        "method": name,
        "parameters": {**{key: getattr(settings, key) for key in method_parameters(name)}, **settings.recorded}}
    held = getattr(method, "backbone", None)
    if held is None or not hasattr(held, "weights_id"):
        return values
    return {**values, "backbone": held.name, "weights": held.weights_id}


def _check_base(bank: FeatureBank | ImageBank, base_bank: FeatureBank) -> None:
    if base_bank.split == "test" or base_bank.identity == bank.identity:
        raise FewshotError(f"base_bank holds split {base_bank.split!r} of {base_bank.name}; statistics come from base "
                           "classes (split 'train'), never from those that are evaluated")
    if isinstance(bank, FeatureBank) and base_bank.features.shape[1] != bank.features.shape[1]:
        raise FewshotError(f"base_bank has {base_bank.features.shape[1]} features an item, bank "
                           f"{bank.features.shape[1]}; extract both with the same backbone")


def _required(base_bank: FeatureBank | None, method: Method) -> FeatureBank:
    if base_bank is None:
        raise FewshotError(f"{type(method).__name__} needs statistics of the base classes: pass base_bank=..., or choose "
                           "settings that do without (e.g. norm='l2n')")
    return base_bank
