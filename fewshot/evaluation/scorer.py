"""Answers to the episodes of a run, in units whose numbers do not depend on how the run is split or interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.sampler import EpisodeIndices, Sampler, joined
from fewshot.episodes.saved import EpisodeList, block_size
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.decisions import Decisions, difficulty
from fewshot.evaluation.measures import Measures
from fewshot.evaluation.progress import Part
from fewshot.methods.contract import Method, TwoStageMethod

_CHUNK_BYTES = 10 << 20  # features of one method call: more would not stay in the caches, less costs calls of operators
_DEVICE_BYTES = 256 << 20  # the same of a GPU, which wants more at once and has no cache to speak of
_UNIT = 256  # episodes of a unit, at most, where a method takes chunk after chunk
_UNIT_CHUNKS = 6  # chunks of it at most: threads that share a run should end at about the same time


class Cancelled(Exception):
    """Nobody waits for these episodes any more."""


@dataclass(eq=False)
class Scorer:
    """What it takes to score any episode of a run; it can be sent to another process.

    bank, drawn_from   the items, and where the row numbers of episodes come from
    method         fitted; prepare: what its episodes pass before
    episodes       of the run
    scores, temperature, decisions   what `Measures` takes
    device         of the method; the items stay where they are

    Episodes are drawn in blocks (those of the fingerprint), and a method sees a block in chunks. A unit is the smallest
    piece that can be left out or scored elsewhere without any other number changing in its last bit: whole chunks, or the
    whole block where a method solves several chunks together.
    """

    bank: FeatureBank | ImageBank
    drawn_from: Sampler | EpisodeList
    method: Method
    prepare: Callable[[Episodes], Episodes]
    episodes: int
    scores: bool = False
    temperature: float | None = None
    decisions: Decisions | None = None
    device: torch.device = torch.device("cpu")
    _drawn: tuple[int, EpisodeIndices] | None = None
    _received: tuple[int, EpisodeIndices] | None = None

    @cached_property
    def block(self) -> int:
        return block_size(self.drawn_from)

    @cached_property
    def chunk(self) -> int:
        """Episodes of one call of the method."""
        one = self.drawn_from.indices(0, 1)
        items, queries = one.items, one.query.shape[1]
        item = self.bank.images[0].numel() * 4 if isinstance(self.bank, ImageBank) else self.bank.features[0].nbytes
        # Images become float32. With hundreds of classes it is the logits that are large.
        room = _CHUNK_BYTES if self.device.type == "cpu" else _DEVICE_BYTES
        return max(1, room // max(item * items, 4 * queries * one.ways))

    @cached_property
    def unit(self) -> int:
        return self.block if isinstance(self.method, TwoStageMethod) else min(
            self.block, min(_UNIT_CHUNKS, max(1, _UNIT // self.chunk)) * self.chunk)

    def cuts(self, shard: tuple[int, int]) -> tuple[int, int]:
        """(first, end) of the episodes of part `shard[0]` of `shard[1]`, on borders of units."""
        each = -(-self.block // self.unit)
        whole, rest = divmod(self.episodes, self.block)
        units = whole * each + -(-rest // self.unit)
        first, end = (min(self.episodes, at // each * self.block + at % each * self.unit)
                      for at in (units * shard[0] // shard[1], units * (shard[0] + 1) // shard[1]))
        return first, end

    def is_border(self, episode: int) -> bool:
        return episode == self.episodes or episode % self.block % self.unit == 0

    def split(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Episodes start .. stop-1 in tasks within blocks, of `most` episodes (a multiple of the unit)."""
        while start < stop:
            block = start // self.block * self.block
            end = min(stop, block + self.block, block + ((start - block) // most + 1) * most)
            yield start, end
            start = end

    def draw(self, start: int, stop: int) -> EpisodeIndices:
        """Row numbers of episodes of one block; the last ones drawn, and those received, are remembered."""
        for known in (self._drawn, self._received):
            if known is not None and known[0] <= start <= stop <= known[0] + len(known[1]):
                return known[1][start - known[0] : stop - known[0]]
        self._drawn = start, self.drawn_from.indices(start, stop - start)
        return self._drawn[1]

    def receive(self, start: int, drawn: EpisodeIndices) -> None:
        """Remember row numbers that were drawn elsewhere: a block, or its pieces one after the other."""
        before = self._received
        if start % self.block and before is not None and before[0] + len(before[1]) == start:
            start, drawn = before[0], joined([before[1], drawn])
        self._received = start, drawn

    def score(self, start: int, stop: int) -> Iterator[Part]:
        """Unit after unit of episodes start .. stop-1, which lie in one block and begin and end at borders."""
        drawn = self.draw(start, stop)
        for at in range(0, len(drawn), self.unit):
            yield self.score_unit(start + at, drawn[at : at + self.unit])

    def score_unit(self, start: int, indices: EpisodeIndices, going: Callable[[], bool] = lambda: True) -> Part:
        """The part of the unit that begins with episode `start`; raises Cancelled between two chunks once `going()` is
        false."""
        rows, done = {}, 0
        measures = Measures(self.bank.classes, self.scores, self.temperature, self.decisions)
        adaptive = self.decisions if self.decisions is not None and self.decisions.slope else None
        hard: list[Tensor] = []

        def chunks() -> Iterator[Episodes]:
            room = None
            here = self.device.type == "cpu"
            if here and isinstance(self.bank, FeatureBank) and not isinstance(self.method, TwoStageMethod):
                # An answer is copied before the next chunk is gathered: its features can lie in the same, warm memory.
                rows = min(self.chunk, len(indices)) * indices.items
                room = self.bank.features.new_empty(rows, self.bank.features.shape[1])
            for chunk in indices.split(self.chunk):
                if not going():
                    raise Cancelled
                prepared = self.prepared(chunk, room)
                if adaptive is not None:
                    hard.append(difficulty(self.method, prepared, adaptive.temperature))
                yield prepared

        with torch.inference_mode():
            for logits, found in answers(self.method, chunks()):
                logits, found = logits.cpu(), {name: values.cpu() for name, values in found.items()}
                here = indices[done : done + len(logits)]
                of_support = torch.cat(hard)[done : done + len(here)] if hard else None
                for name, values in (found | measures(logits, here.query_labels, here.classes, of_support)).items():
                    # Written into one array: small tensors kept alive among the freed features of each chunk would split
                    # the heap, and memory would grow with the number of episodes.
                    if name not in rows:
                        rows[name] = values.new_empty(len(indices), *values.shape[1:])
                    rows[name][done : done + len(here)] = values
                done += len(here)
        return Part(start, start + len(indices), rows, measures.totals)

    def prepared(self, chunk: EpisodeIndices, room: Tensor | None = None) -> Episodes:
        """The episodes of `chunk` as the method gets them, gathered in the memory `room`."""
        prompts = self.method.reads_prompts or getattr(self.prepare, "reads_prompts", False)
        return self.prepare(self._over(chunk.gather(self.bank, room, prompts)))

    def _over(self, episodes: Episodes) -> Episodes:
        """The episodes on the device of the method."""
        if self.device.type == "cpu":
            return episodes
        if self.device.type == "cuda":
            # From pinned memory the copy does not wait, and this thread can gather the next chunk meanwhile.
            return episodes.map(lambda x: x.pin_memory().to(self.device, non_blocking=True))
        return episodes.to(self.device)
