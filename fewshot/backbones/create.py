"""`create_backbone`: the one way to make a backbone, with reproducible weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.open_clip_models import find_open_clip
from fewshot.backbones.timm_models import TimmBackbone
from fewshot.backbones.weights import load_weights
from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.core.hashing import state_sha256
from fewshot.core.registry import UnknownName, nearest, unknown_message
from fewshot.core.seeding import isolated_rng

_COMMON = ("channels", "image_size", "weights", "model")
FAMILIES = ("timm/", "open_clip/")  # what the names of backbones begin with that are models of a library


def create_backbone(name: str, *, channels: int = 3, image_size: int | None = None, weights: str | Path | None = None,
                    seed: int = 0, batch_norm: str = "running", reduce: str | None = None, **options: Any) -> Backbone:
    """The backbone `name` in eval mode; call `.train()` to train it.

    name         one of `list_backbones()`, "timm/<model>" for any model of timm, "open_clip/<architecture>[:<tag>]" for the
                 image tower of a model of open_clip, "timm/hf-hub:<owner>/<name>" and "open_clip/hf-hub:<owner>/<name>" for
                 those of the Hugging Face hub
    channels     1 or 3 the network takes; its transform adapts images of the other kind
    image_size   side images are resized to; None is the backbone's default (see its class)
    weights      None for the backbone's default, "random", another name its class lists ("imagenet" of
                 efficientnet_lite0, "pretrained" of the libraries' models), or a file written by `save_weights`
    seed         of random weights; the caller's generators are left as they were
    batch_norm   "running" or "batch", see `Backbone`
    reduce       None: features as the network makes them; "average", "max" or "flatten" of its last map, see `Backbone`
    options      keywords of the backbone (of `timm.create_model`, `open_clip.create_model` for their models)

    Raises FewshotError; for unknown names and options with the nearest known ones.
    """
    cls, arguments, chosen = check_backbone(name, weights)
    if channels not in (1, 3):
        raise FewshotError(f"channels={channels!r}; images have 1 or 3")
    if image_size is not None:
        image_size = check_integer("image_size", image_size, 1)
    is_file = chosen not in cls.weights
    if len(cls.weights) > 1:
        arguments["weights"] = "random" if is_file else chosen
    options = _with_defaults(name, cls, options)
    make: Callable[..., Backbone] = cls  # which takes other arguments than the base of all
    with isolated_rng(seed):
        backbone = make(channels, image_size, **arguments, **options)
    backbone.name, backbone.seed = name, seed
    backbone.options = {"channels": channels, "image_size": backbone.input_size, **options}
    if reduce is not None:
        backbone.reduce_by(reduce)
        backbone.options["reduce"] = reduce
    if is_file or chosen == "random":
        backbone.random_sha256 = state_sha256(backbone.state_dict())
    if is_file:
        load_weights(backbone, chosen)
    # Convolutions are faster with channels last, on CPU too; once the weights are so, the activations follow.
    for value in backbone.parameters():
        if value.ndim == 4:  # `to` would take those of videos (Conv3d), too, and refuse them
            value.data = value.data.to(memory_format=torch.channels_last)
    backbone.batch_norm = batch_norm
    return backbone.eval()


def check_backbone(name: str, weights: str | Path | None = None) -> tuple[type[Backbone], dict, str]:
    """(class, arguments that the name implies, weights to use); raises FewshotError for an unknown name and for weights
    that are not there. Quick: nothing is built or read."""
    cls, arguments = _find(name)
    chosen = cls.weights[0] if weights is None else str(weights)
    if chosen not in cls.weights and not Path(chosen).is_file():
        raise FewshotError(f"weights={chosen!r} is neither a file nor one of those of {name}: {', '.join(cls.weights)}")
    return cls, arguments, chosen


def list_backbones(timm_models: bool = False) -> list[str]:
    """Registered names, sorted; with `timm_models` those of timm follow as "timm/<model>"."""
    if not timm_models:
        return list(BACKBONES)
    import timm

    return [*BACKBONES, *(f"timm/{name}" for name in timm.list_models())]


def input_for(name: str, images: Tensor) -> dict[str, Any]:
    """The `channels` and `image_size` to create the backbone `name` with for stored images [..., C, H, W]: the images'
    own for networks trained here, those of the network where it prescribes them (ImageNet weights, timm models)."""
    if _find(name)[0].own_input:
        return {"channels": 3, "image_size": None}
    return {"channels": images.shape[-3], "image_size": images.shape[-1]}


def default_options(name: str) -> dict:
    """The keywords of the backbone `name` with their defaults."""
    return _with_defaults(name, _find(name)[0], {})


def backbone_table() -> list[dict]:
    """name, feature_dim, input_size and pretrained_on of every registered backbone at its defaults."""
    rows = []
    for name in BACKBONES:
        dim, size = BACKBONES[name].at_defaults
        rows.append({"name": name, "feature_dim": dim, "input_size": size or "any",
                     "pretrained_on": BACKBONES[name].default_pretrained_on or "-"})
    return [*rows, *({"name": name, "feature_dim": "the model's", "input_size": "the model's", "pretrained_on": "optional"}
                     for name in ("timm/<model>", "open_clip/<architecture>[:<tag>]"))]


def _find(name: str) -> tuple[type[Backbone], dict]:
    if name in BACKBONES:
        return BACKBONES[name], {}
    if name.startswith("open_clip/"):
        model = name.removeprefix("open_clip/")
        return find_open_clip(model), {"model": model}
    import timm  # takes seconds, with torchvision behind it: only for names that may be its

    if not name.startswith("timm/"):
        if timm.is_model(name):
            raise UnknownName(f"unknown backbone {name!r}; did you mean 'timm/{name}'?")
        return BACKBONES[name], {}
    model = name.removeprefix("timm/")
    if not model.startswith("hf-hub:") and not timm.is_model(model):  # the hub's are known when they are asked for
        hint = [f"'timm/{hit}'" for hit in nearest(model.split(".")[0], timm.list_models())]
        raise UnknownName(f"unknown backbone {name!r}; " + (
            f"did you mean {' or '.join(hint)}?" if hint else "timm.list_models() lists timm's names"))
    return TimmBackbone, {"model": model}


def _with_defaults(name: str, cls: type[Backbone], options: dict) -> dict:
    parameters = inspect.signature(cls).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    defaults = {key: p.default for key, p in parameters.items() if key not in _COMMON and p.kind is not p.VAR_KEYWORD}
    for key in options:
        if key in _COMMON or (key not in defaults and not free):
            raise FewshotError(unknown_message(f"option of {name}", key, list(defaults)))
    return {**defaults, **options}
