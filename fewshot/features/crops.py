"""Several random crops of every image, embedded once: averaged (EASY's augmented shots), averaged by how much each looks
like the whole image (WCA), or kept side by side (COSOC)."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.core.checked import check_at_least
from fewshot.core.counted_random import below, counted_uniforms
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message

_SHARPNESS = math.e**4  # of the cosines in "weighted", as in the official program of WCA
_TRIES = 10  # boxes drawn until one fits into the image, as in torchvision


@dataclass(frozen=True)
class Crops:
    """`count` random resized crops of an image; `str` is the text that `parse_crops` reads.

    kind       "mean": the features of the crops are averaged, before any transform; "weighted": their unit vectors are, by
               their likeness to the whole image (`by_likeness`), for the method wca; "keep": they stand side by side,
               [count, D] flattened, for methods that compare crops (cosoc)
    count      crops of each image
    flip       mirror each crop with probability 1/2
    smallest   share of the image's area that a crop has at least
    seed       of the crops

    A crop has an area uniform in [smallest, 1] of the image's, sides in a ratio log-uniform in [3/4, 4/3], a uniform place,
    and is resized to the image's own size: the distribution of torchvision's RandomResizedCrop for square images.
    Deviations: the interpolation is bilinear and at the edges of a crop reads the pixel beside it, and where ten boxes
    fail to fit the whole image is taken (of a square image, as in torchvision).
    """

    kind: str
    count: int
    flip: bool = False
    smallest: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, count=self.count)
        if not 0 < self.smallest <= 1:
            raise FewshotError(f"smallest={self.smallest!r} in the crops; it is a share of the area, above 0 and at most 1")
        object.__setattr__(self, "smallest", float(self.smallest))

    def __str__(self) -> str:
        return f"{self.kind}({','.join(f'{key}={getattr(self, key)}' for key in _SETTINGS)})"

    def cut(self, images: Tensor, number: int, name: str, start: int) -> Tensor:
        """Crop `number` of images [B, C, H, W] (uint8, or floating), rows start .. start + B - 1 of what `name` names:
        floating [B, C, H, W] of the same range (uint8 divided by 255). A crop depends on seed, name, row and number."""
        height, width = images.shape[-2:]
        stream = f"{self.seed}/{name}/{number}"
        top, left, high, wide, mirrored = self._boxes(stream, start, len(images), height, width)
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        theta = np.zeros((len(images), 2, 3))
        theta[:, 0, 0] = np.where(mirrored, -1, 1) * wide / width
        theta[:, 0, 2] = (2 * left + wide) / width - 1
        theta[:, 1, 1] = high / height
        theta[:, 1, 2] = (2 * top + high) / height - 1
        grid = F.affine_grid(torch.from_numpy(theta).to(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _boxes(self, stream: str, start: int, count: int, height: int, width: int) -> tuple[np.ndarray, ...]:
        """(top, left, height, width, mirrored), each [count]."""
        drawn = counted_uniforms(f"crops/{stream}", {"area": _TRIES, "ratio": _TRIES, "place": 2, "flip": 1}, start, count)
        area = (self.smallest + (1 - self.smallest) * drawn["area"]) * height * width
        root = np.exp((drawn["ratio"] - 0.5) * math.log(4 / 3))  # of the ratio
        wide, high = np.rint(np.sqrt(area) * root), np.rint(np.sqrt(area) / root)  # [count, tries]
        fits = (wide >= 1) & (wide <= width) & (high >= 1) & (high <= height)
        first, some = fits.argmax(1)[:, None], fits.any(1)
        wide = np.where(some, np.take_along_axis(wide, first, 1)[:, 0], width)
        high = np.where(some, np.take_along_axis(high, first, 1)[:, 0], height)
        top, left = below(drawn["place"][:, 0], height - high + 1), below(drawn["place"][:, 1], width - wide + 1)
        return top, left, high, wide, self.flip & (drawn["flip"][:, 0] < 0.5)


def by_likeness(crops: Tensor, whole: Tensor) -> Tensor:
    """Unit vectors [B, D]: the sum of the unit features of crops [V, B, D], weighted by the softmax over V of e^4 times
    their cosine to the features [B, D] of the whole image (Li et al. 2024, arXiv:2406.02915)."""
    crops = F.normalize(crops, dim=-1)
    weights = (_SHARPNESS * (crops * F.normalize(whole, dim=-1)).sum(-1, keepdim=True)).softmax(0)  # [V, B, 1]
    return F.normalize((weights * crops).sum(0), dim=-1)


_SETTINGS = [field.name for field in dataclasses.fields(Crops) if field.name != "kind"]


def parse_crops(spec: str) -> Crops | None:
    """The crops written as "mean(30)", "weighted(60)" or "keep(7,flip=True,seed=1)"; None for "", the whole images.

    Raises FewshotError for text that does not read, and for unknown settings and values out of range.
    """
    if not spec.strip():
        return None
    match = re.fullmatch(r"\s*(mean|weighted|keep)\s*\(([^()]*)\)\s*", spec)
    if match is None:
        raise FewshotError(f"cannot read the crops {spec!r}; write e.g. 'mean(30)' or 'keep(7,flip=True)'")
    given: dict[str, Any] = {}
    for position, argument in enumerate(match[2].split(",") if match[2].strip() else []):
        key, equals, text = (part.strip() for part in argument.partition("="))
        if not equals:
            key, text = "count" if position == 0 else key, key
        if key not in _SETTINGS:
            raise FewshotError(unknown_message("setting of crops", key, _SETTINGS))
        given[key] = _value(spec, key, text)
    if "count" not in given:
        raise FewshotError(f"the crops {spec!r} do not say how many; write e.g. '{match[1]}(30)'")
    return Crops(match[1], **given)


def _value(spec: str, key: str, text: str) -> object:
    kinds: dict[str, type | tuple[type, ...]] = {"flip": bool, "smallest": (int, float)}
    kind = kinds.get(key, int)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = {"flip": "True or False", "smallest": "a number"}.get(key, "an integer")
        raise FewshotError(f"{key}={text!r} in the crops {spec!r}; expected {wanted}")
    return value
