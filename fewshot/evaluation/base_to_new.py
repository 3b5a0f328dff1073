"""Scores of protocol base_to_new: base classes among themselves, new classes among themselves, and their harmonic mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.episodes.base_to_new import BaseToNewSampler, base_half, new_half
from fewshot.episodes.sampler import EpisodeIndices
from fewshot.evaluation.measures import class_counts
from fewshot.evaluation.progress import Part
from fewshot.evaluation.scorer import Cancelled, Scorer
from fewshot.ops.class_reductions import best_class


class BaseToNewScorer(Scorer):
    """`correct` is the harmonic mean of the measures `base_accuracy` and `new_accuracy`."""

    def score_unit(self, start: int, indices: EpisodeIndices, going: Callable[[], bool] = lambda: True) -> Part:
        sampler, bank = self.drawn_from, self.bank
        if not isinstance(sampler, BaseToNewSampler) or not isinstance(bank, FeatureBank) or bank.texts is None:
            raise FewshotError("protocol base_to_new tests classes by their names: it takes drawn episodes of a bank of "
                               "features with texts (`fewshot embed ... --templates`, or bank.with_texts)")
        if self.scores or self.decisions is not None:
            raise FewshotError("protocol base_to_new measures accuracies alone; leave metrics and calibration out")
        found: list[dict[str, Tensor]] = []
        with torch.inference_mode():
            for one in indices.split(1):
                if not going():
                    raise Cancelled
                found.append(self._score(one, sampler.base, bank))
        rows = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        return Part(start, start + len(indices), rows, {})

    def _score(self, indices: EpisodeIndices, base: int, bank: FeatureBank) -> dict[str, Tensor]:
        halves = base_half(indices, base), new_half(indices, base)
        known = self.prepare(self._over(halves[0].gather(bank))).working()
        # What the transforms make of new queries, beside the same support.
        new = self.prepare(self._over(halves[1].gather(bank))).working()
        assert new.text is not None, "of a bank with texts"
        logits = self.method(known).cpu(), self.method.transfer(known, new.query, new.text).cpu()
        predicted = [best_class(each.transpose(1, 2)) for each in logits]
        right = [(found == half.query_labels).double().mean(1) for found, half in zip(predicted, halves, strict=True)]
        total = right[0] + right[1]
        together = torch.cat([predicted[0], predicted[1] + base], 1)
        return {"correct": 2 * right[0] * right[1] / total.clamp(min=1e-300), "base_accuracy": right[0],
                "new_accuracy": right[1],
                **class_counts(together, indices.query_labels, indices.classes, int(bank.classes[-1]) + 1)}
