"""All episodes of a run: those kept already, those scored now, and their fingerprint."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from fewshot.core.bars import tqdm
from fewshot.episodes.saved import EpisodeDigest
from fewshot.evaluation.progress import Part, Parts, summed
from fewshot.evaluation.scorer import Scorer
from fewshot.evaluation.work import Work
from fewshot.evaluation.workers import shared, task_size


class Rows:
    """Results of all `episodes` of a run, in arrays that are made once, and the sums of the totals."""

    def __init__(self, episodes: int):
        self.episodes, self.known, self.seconds = episodes, 0, 0.0
        self.arrays: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}

    def add(self, part: Part) -> None:
        for name, values in part.rows.items():
            if name not in self.arrays:
                self.arrays[name] = torch.empty(self.episodes, *values.shape[1:], dtype=values.dtype)
            self.arrays[name][part.start : part.stop] = values
        self.totals = summed(self.totals, part.totals)
        self.known += len(part)
        self.seconds += part.seconds

    @property
    def complete(self) -> bool:
        return self.known == self.episodes


class Fingerprint:
    """Of the episodes of a run, taken block by block: sha256 needs all of them in order, whoever scores them."""

    def __init__(self, scorer: Scorer):
        self._scorer, self._digest, self._reached = scorer, EpisodeDigest(scorer.bank.identity), 0

    def reach(self, stop: int) -> None:
        """Take in the blocks that end at episode `stop` or before. A block that was just scored is not drawn again."""
        while self._reached < stop:
            end = min(self._reached + self._scorer.block, self._scorer.episodes)
            if end > stop:
                return
            self._digest.update(self._scorer.draw(self._reached, end))
            self._reached = end

    def hexdigest(self) -> str:
        self.reach(self._scorer.episodes)
        return self._digest.hexdigest()


def collect(scorer: Scorer, kept: Parts, work: Work, label: str = "") -> tuple[Rows, Fingerprint]:
    """Score what `kept` does not hold yet and keep it there: (all rows that are known now, the fingerprint). Of a shard
    the rows are complete if the others are kept already."""
    shard = work.shard
    rows, fingerprint, gaps, position = Rows(scorer.episodes), Fingerprint(scorer), [], 0
    first, end = scorer.cuts(shard or (0, 1))
    for part in chain(kept.read(scorer.episodes, scorer.is_border), [Part(scorer.episodes, scorer.episodes, {}, {})]):
        gaps += [(max(position, first), min(part.start, end))]
        rows.add(part)
        position = part.stop
    gaps = [(low, high) for low, high in gaps if low < high]
    todo = sum(high - low for low, high in gaps)
    tasks = [task for gap in gaps for task in scorer.split(*gap, task_size(scorer, todo, work.workers))]
    with (shared(scorer, tasks, work.workers) as scores,
          tqdm(total=end - first, initial=end - first - todo, unit="ep", desc=label, disable=not work.progress,
               leave=False) as bar):
        try:
            for part in scores:
                if shard is None:
                    fingerprint.reach(part.stop)
                rows.add(part)
                kept.add(part, rows.arrays)
                bar.update(len(part))
        except BaseException:  # Ctrl-C or an interrupted cell, too: what was finished since the last write is kept
            kept.flush(rows.arrays)
            raise
    if shard is not None:
        kept.flush(rows.arrays)
        if not rows.complete:  # others may have finished meanwhile
            rows = Rows(scorer.episodes)
            for part in kept.read(scorer.episodes, scorer.is_border):
                rows.add(part)
    return rows, fingerprint
