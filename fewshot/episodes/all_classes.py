"""`AllClassesSampler`: all classes of a data set, K training images of each, all test images as queries.

An episode is one draw of the training images: a pure function of (labels, parts, shots, seed, its number), like every other
episode. The queries of all draws are the same images, so an interval over draws says how the choice of the training images
matters, and nothing about that of the test images.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fewshot.core.checked import check_integer
from fewshot.core.counted_random import counted_uniforms
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeIndices
from fewshot.episodes.types import Episodes

FEW = 4  # validation images a class at most, as CoOp takes them
_STREAM = "fewshot all classes 1"  # a change of the algorithm must change this name
TRAIN, VALIDATION, TEST = range(3)  # of `ImageBank.parts`


class AllClassesSampler:
    """Draws K training images of each class, and min(K, 4) or all validation images.

    bank        with `parts`: training, validation and test images as published; where none are for validation, they come
                from those for training. Without, all images that are drawn neither for training nor as one of the
                min(K, 4) for validation are test images
    shots       K; the draw of K images begins with that of fewer
    validation  "none", "few" or "full"; it changes neither support nor queries
    seed        any integer
    classes     labels of the classes that take part; all of the bank unless given

    Raises FewshotError for a class with too few images, and for validation="full" without parts.
    """

    def __init__(self, bank: ImageBank | FeatureBank, shots: int = 1, validation: str = "few", seed: int = 0,
                 classes: Tensor | None = None):
        self.shots, self.seed = check_integer("shots", shots, 1), check_integer("seed", seed)
        if validation not in ("none", "few", "full"):
            raise FewshotError(unknown_message("validation", str(validation), ["none", "few", "full"]))
        self.validation, self._few = validation, min(self.shots, FEW)
        self._all, self._classes = bank.labels.numpy(), (bank.classes if classes is None else classes).numpy()
        self._rows = np.flatnonzero(np.isin(self._all, self._classes))
        self._places = np.searchsorted(self._classes, self._all[self._rows])  # classes by number, 0 .. C-1
        self._parts = None if bank.parts is None else bank.parts.numpy()[self._rows]
        self._validated = self._parts is not None and bool((self._parts == VALIDATION).any())
        if not self._validated and validation == "full":
            raise FewshotError(f"validation='full', but {bank.name}/{bank.split} does not say which images are for it; "
                               "choose few, or a data set with such parts (caltech101, protocol=zhou, split all)")
        self._check_sizes(bank)

    def indices(self, start: int = 0, count: int = 10) -> EpisodeIndices:
        """Row numbers of draws start .. start+count-1."""
        if start < 0 or count < 1:
            raise FewshotError(f"start={start}, count={count}; start must be at least 0 and count at least 1")
        uniform = counted_uniforms(f"{_STREAM} {self.seed}", {"items": len(self._rows)}, start, count)["items"]
        drawn = [self._draw(keys) for keys in uniform]
        support, query, validation = (torch.from_numpy(np.stack([draw[part] for draw in drawn])) for part in range(3))
        places, classes = torch.from_numpy(self._places), torch.from_numpy(self._classes).expand(count, -1)
        rows = torch.from_numpy(self._rows)
        found = EpisodeIndices(rows[support], places[support], rows[query], places[query], classes)
        if self.validation == "none":
            return found
        return dataclasses.replace(found, validation=rows[validation], validation_labels=places[validation])

    def sample(self, bank: ImageBank | FeatureBank, start: int = 0, count: int = 1) -> tuple[Episodes, Tensor]:
        """Draws start .. start+count-1 of `bank` and their query labels [E, Q]."""
        self.check_bank(bank)
        indices = self.indices(start, count)
        return indices.gather(bank), indices.query_labels

    def check_bank(self, bank: ImageBank | FeatureBank) -> None:
        if not np.array_equal(bank.labels.numpy(), self._all):
            raise FewshotError(f"the labels of the bank ({len(bank)} items) are not those the sampler was built from "
                               f"({len(self._all)} items); build it from this bank")

    def _draw(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(support, query, validation) rows; the support class by class, the others shuffled."""
        rank = self._rank(keys, np.ones(len(keys), dtype=bool) if self._parts is None else self._parts == TRAIN)
        support, validation = rank < self.shots, (rank >= self.shots) & (rank < self.shots + self._few)
        query = rank >= self.shots + self._few if self._parts is None else self._parts == TEST
        if self._parts is not None and self._validated:
            validation = np.equal(self._parts, VALIDATION)
            if self.validation != "full":
                validation = self._rank(keys, validation) < self._few
        by_class = np.lexsort((keys, self._places))
        shuffled = np.argsort(keys)
        return by_class[support[by_class]], shuffled[query[shuffled]], shuffled[validation[shuffled]]

    def _rank(self, keys: np.ndarray, among: np.ndarray) -> np.ndarray:
        """[M] place of each item within its class by its key, of those `among`; of the others a place after any."""
        order = np.lexsort((keys, ~among, self._places))
        first = np.searchsorted(self._places[order], np.arange(len(self._classes)))
        rank = np.empty(len(keys), dtype=np.int64)
        rank[order] = np.arange(len(keys)) - first[self._places[order]]
        return np.where(among, rank, len(keys))

    def _check_sizes(self, bank: ImageBank | FeatureBank) -> None:
        if len(self._classes) < 2:
            raise FewshotError(f"{bank.name}/{bank.split} has {len(self._classes)} classes; a choice needs 2 at least")
        few, need = self._few if self.validation != "none" else 0, self.shots + self._few + 1
        needed: list[tuple[str, int, int | None]] = [
            (f"{need} images ({self.shots} shots, {self._few} for validation, 1 query)", need, None)]
        if self._parts is not None:
            training = self.shots + (0 if self._validated else few)
            needed = [(f"{training} training images", training, TRAIN), ("1 test image", 1, TEST)]
            needed += [(f"{few} validation images", few, VALIDATION)] if self._validated else []
        for what, least, part in needed:
            here = self._places if part is None else self._places[self._parts == part]
            sizes = np.bincount(here, minlength=len(self._classes))
            if sizes.min() < least:
                label = int(self._classes[sizes.argmin()])
                name = f"{label} ({bank.class_names[label]}) of {bank.name}/{bank.split}"
                few_of = f"{int((sizes < least).sum())} of {len(sizes)} classes have too few"
                raise FewshotError(f"class {name} has {sizes.min()} images where {what} are needed ({few_of}): ask for "
                                   "fewer shots" + self._hint(bank))

    def _hint(self, bank: ImageBank | FeatureBank) -> str:
        return "" if self._parts is None or {TRAIN, TEST} <= set(self._parts.tolist()) else (
            f"; split {bank.split} of {bank.name} has no images of some part: load split all")
