"""Models of OpenCLIP as backbones: "open_clip/<architecture>" with random weights, "open_clip/<architecture>:<tag>" with
published ones, and those of the Hugging Face hub as "open_clip/hf-hub:<owner>/<name>"."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fewshot.backbones.transform import ImageTransform
from fewshot.backbones.two_towers import TwoTowers, check_colour
from fewshot.core.errors import FewshotError
from fewshot.core.optional import needed
from fewshot.core.registry import UnknownName, nearest, unknown_message

_HUB = "hf-hub:"
_PREPROCESSING = ("mean", "std", "interpolation")
# What stands in tags and names of the hub -> the image-text pairs that it means; longer ones first.
_PAIRS = {"mscoco_finetuned_laion2b": "LAION-2B and MS-COCO", "laion_aesthetic": "LAION-Aesthetics",
          "laion400m": "LAION-400M", "laion2b": "LAION-2B", "laion5b": "LAION-5B", "datacompdr": "DataCompDR-1B",
          "datacomp_m": "DataComp medium",
          "datacomp_s_": "DataComp small", "datacomp_l": "DataComp large", "datacomp": "DataComp-1B",
          "commonpool": "CommonPool", "openai": "WIT-400M", "yfcc15m": "YFCC-15M", "cc12m": "CC12M", "webli": "WebLI",
          "dfn2b": "DFN-2B", "dfn5b": "DFN-5B", "metaclip_400m": "MetaCLIP-400M", "metaclip": "MetaCLIP",
          "merged2b": "Merged-2B (LAION-2B and COYO-700M)"}


class OpenClipBackbone(TwoTowers):
    """`open_clip.create_model(architecture)`; mean, deviation and interpolation are those of the tag, else the model's.

    image_size       default: the size that the model was made for
    weights          "random"; "pretrained", with a tag or of the hub, lets open_clip fetch them
    pre_projection   features before the last linear map, see `TwoTowers`
    options          passed to `open_clip.create_model`, e.g. force_quick_gelu=True

    A configuration of one's own is made known by `open_clip.add_model_config(FILE)` before. A tag says what the model's
    activations are, too: "ViT-B-32:openai" has QuickGELU without being told so.

    Deviation from open_clip's evaluation: images are resized to the whole input, not enlarged and centre-cropped.
    Source: Ilharco et al. 2021, mlfoundations/open_clip; Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023 (SigLIP),
    arXiv:2303.15343.
    """

    def __init__(self, channels: int, image_size: int | None, model: str, weights: str = "random", *,
                 pre_projection: bool = False, **options: Any):
        check_colour(f"open_clip/{model}", channels)
        open_clip = _library(model)
        architecture, tag = _parts(model)
        published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
        options.setdefault("force_quick_gelu", bool(published.get("quick_gelu")))
        fetched = weights == "pretrained"
        if not fetched:  # a text tower of transformers would otherwise fetch its own
            options.setdefault("pretrained_text", False)
        try:
            with _without_log():
                net = open_clip.create_model(
                    architecture, tag if fetched else None, load_weights=fetched, require_pretrained=fetched,
                    force_image_size=image_size, **options,
                    force_preprocess_cfg={key: published[key] for key in _PREPROCESSING if key in published})
            prepared = open_clip.get_model_preprocess_cfg(net)
            transform = ImageTransform(3, _side(prepared["size"]), tuple(prepared["mean"]), tuple(prepared["std"]),
                                       "bilinear" if prepared["interpolation"] == "bilinear" else "bicubic")
            super().__init__(net, functools.partial(_tokenizer, model), transform, pre_projection)
        except FewshotError:
            raise
        except Exception as error:  # each of its models checks in its own way, and so does the hub
            raise FewshotError(f"open_clip cannot make {model!r} with image_size={image_size}, {options}: "
                               f"{error or type(error).__name__}") from error
        if fetched:
            self.pretrained_on = pairs_behind(model)

    def load_published(self, path: Path) -> None:
        """Load a checkpoint of open_clip, or one whose names it knows to translate; raises what open_clip raises, and the
        weights are then of no use."""
        with _without_log():
            _library(self.name).load_checkpoint(self.net, str(path))


class PretrainedOpenClip(OpenClipBackbone):
    """As its base; there are published weights, which are the default."""

    weights = ("pretrained", "random")


def find_open_clip(model: str) -> type[OpenClipBackbone]:
    """The class for "architecture", "architecture:tag" or "hf-hub:owner/name"; raises FewshotError for an unknown
    architecture or tag, with the nearest ones. What is on the hub is known when it is asked for."""
    if model.startswith(_HUB):
        return PretrainedOpenClip
    open_clip = _library(model)
    architecture, tag = _parts(model)
    if architecture not in open_clip.list_models():
        hint = [f"'open_clip/{hit}'" for hit in nearest(architecture, open_clip.list_models())]
        raise UnknownName(f"unknown backbone 'open_clip/{model}'; " + (
            f"did you mean {' or '.join(hint)}?" if hint else "open_clip.list_models() lists the names of open_clip"))
    if not tag:
        return OpenClipBackbone
    if tag not in (tags := open_clip.list_pretrained_tags_by_model(architecture)):
        raise UnknownName(unknown_message(f"weights of open_clip/{architecture}", tag, tags))
    return PretrainedOpenClip


def pairs_behind(model: str) -> str | None:
    """The data that the tag of a model, or its name on the hub, says it was trained on: by name where it is known, else the
    tag itself; None without a tag."""
    tag = _parts(model)[1] or model.removeprefix(_HUB) * model.startswith(_HUB)
    plain = tag.lower().replace("-", "_")
    return next((data for part, data in _PAIRS.items() if part in plain), tag) or None


def _parts(model: str) -> tuple[str, str]:
    """(architecture, tag); a name of the hub has none."""
    architecture, _, tag = (model, "", "") if model.startswith(_HUB) else model.partition(":")
    return architecture, tag


def _library(model: str) -> Any:
    return needed("open_clip", f"backbone open_clip/{model}", "clip")


def _side(size: int | tuple[int, int]) -> int:
    if isinstance(size, int):
        return size
    if size[0] != size[1]:
        raise FewshotError(f"this model of open_clip takes images of {' x '.join(map(str, size))} pixels, and those here "
                           "are square; give image_size=, or another model")
    return size[0]


def _tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    try:
        with _without_log():
            return _library(model).get_tokenizer(_parts(model)[0])
    except Exception as error:  # of transformers, sentencepiece and the hub
        raise FewshotError(f"the tokenizer of open_clip/{model} cannot be had ({error or type(error).__name__}); it is "
                           "fetched from the Hugging Face hub once: go online, or copy the hub's cache") from error


@contextmanager
def _without_log() -> Iterator[None]:
    """open_clip notes through the root logger that weights are random, as was asked for, and so sets up logging."""
    root, nowhere = logging.getLogger(), logging.NullHandler()

    def of_others(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root.addHandler(nowhere)
    root.addFilter(of_others)
    try:
        yield
    finally:
        root.removeFilter(of_others)
        root.removeHandler(nowhere)
