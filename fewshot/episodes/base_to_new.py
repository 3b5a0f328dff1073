"""`BaseToNewSampler`: training images of half of the classes, test images of both halves (CoOp's base-to-new)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fewshot.core.counted_random import counted_uniforms
from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.all_classes import TEST, AllClassesSampler
from fewshot.episodes.sampler import EpisodeIndices
from fewshot.episodes.types import Episodes

_STREAM = "fewshot base to new 1"  # a change of the algorithm must change this name


class BaseToNewSampler:
    """Draws of K training images of each base class, with the test images of all classes.

    Classes are sorted by label; the first ceil(C / 2) are base classes, the others new (Zhou et al. 2022, arXiv:2203.05557).
    Support and validation images are those of `AllClassesSampler` on the base classes, and so are their queries, which come
    first; then follow those of the new classes, all their images where the bank does not say which are test images. Labels
    of queries count base classes first.
    """

    def __init__(self, bank: ImageBank | FeatureBank, shots: int = 16, validation: str = "few", seed: int = 0):
        classes = bank.classes
        if len(classes) < 4:
            raise FewshotError(f"{bank.name}/{bank.split} has {len(classes)} classes; two halves need 4 at least")
        self.base = -(-len(classes) // 2)
        self._inside = AllClassesSampler(bank, shots, validation, seed, classes[: self.base])
        new = torch.isin(bank.labels, classes[self.base :])
        new &= torch.ones_like(new) if bank.parts is None else bank.parts == TEST
        self._new, self._classes, self.seed = new.nonzero()[:, 0], classes, seed
        self._new_labels = torch.searchsorted(classes, bank.labels[self._new])
        if len(lacking := set(range(self.base, len(classes))) - set(self._new_labels.tolist())):
            label = int(classes[min(lacking)])
            raise FewshotError(f"class {label} ({bank.class_names[label]}) of {bank.name}/{bank.split} has no test image")

    def indices(self, start: int = 0, count: int = 10) -> EpisodeIndices:
        """Row numbers of draws start .. start+count-1."""
        inside = self._inside.indices(start, count)
        keys = counted_uniforms(f"{_STREAM} {self.seed}", {"new": len(self._new)}, start, count)["new"]
        order = torch.from_numpy(np.argsort(keys, 1))
        return dataclasses.replace(inside, query=torch.cat([inside.query, self._new[order]], 1),
                                   query_labels=torch.cat([inside.query_labels, self._new_labels[order]], 1),
                                   classes=self._classes.expand(count, -1))

    def sample(self, bank: ImageBank | FeatureBank, start: int = 0, count: int = 1) -> tuple[Episodes, Tensor]:
        """The base half of draws start .. start+count-1 of `bank`, and the labels [E, Q] of its queries."""
        self.check_bank(bank)
        base = base_half(self.indices(start, count), self.base)
        return base.gather(bank), base.query_labels

    def check_bank(self, bank: ImageBank | FeatureBank) -> None:
        self._inside.check_bank(bank)


def base_half(indices: EpisodeIndices, base: int) -> EpisodeIndices:
    """The episodes of the `base` base classes among themselves."""
    queries = int((indices.query_labels[0] < base).sum())
    return dataclasses.replace(indices, query=indices.query[:, :queries], query_labels=indices.query_labels[:, :queries],
                               classes=indices.classes[:, :base])


def new_half(indices: EpisodeIndices, base: int) -> EpisodeIndices:
    """The queries of the new classes among themselves; the support stays that of the base classes."""
    queries = int((indices.query_labels[0] < base).sum())
    return dataclasses.replace(indices, query=indices.query[:, queries:], classes=indices.classes[:, base:],
                               query_labels=indices.query_labels[:, queries:] - base)
