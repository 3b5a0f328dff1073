"""Answers to the episodes of a run, in units whose numbers do not depend on how the run is split or interrupted."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fewshot.answers import answers
from fewshot.banks import FeatureBank, ImageBank
from fewshot.episode_list import EpisodeDigest, EpisodeList, block_size
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.measures import Measures
from fewshot.methods.base import Method, TwoStageMethod
from fewshot.parts import Part, Parts, summed
from fewshot.sampler import EpisodeIndices, EpisodeSampler, joined

_CHUNK_BYTES = 4 << 20  # features of one method call: about what the second-level caches of two cores hold
_UNIT = 256  # episodes of a unit, about, where a method takes chunk after chunk
_AHEAD = 2  # tasks that wait for each of the other processes, so that none waits for this one
_TASKS = 8  # a worker, at least, so that all end at about the same time


@dataclass(eq=False)
class Scorer:
    """What it takes to score any episode of a run; it can be sent to another process.

    bank, source   the items, and where the row numbers of episodes come from
    method         fitted; prepare: what its episodes pass before
    episodes       of the run
    scores, temperature   what `Measures` takes

    Episodes are drawn in blocks (those of the fingerprint), and a method sees a block in chunks. A unit is the smallest
    piece that can be left out or scored elsewhere without any other number changing in its last bit: whole chunks, or the
    whole block where a method solves several chunks together.
    """

    bank: FeatureBank | ImageBank
    source: EpisodeSampler | EpisodeList
    method: Method
    prepare: Callable[[Episodes], Episodes]
    episodes: int
    scores: bool = False
    temperature: float | None = None
    _drawn: tuple[int, EpisodeIndices] | None = None
    _received: tuple[int, EpisodeIndices] | None = None

    @cached_property
    def block(self) -> int:
        return block_size(self.source)

    @cached_property
    def chunk(self) -> int:
        """Episodes of one call of the method."""
        one = self.source.indices(0, 1)
        items, queries = one.support.shape[1] + one.query.shape[1], one.query.shape[1]
        item = self.bank.images[0].numel() * 4 if isinstance(self.bank, ImageBank) else self.bank.features[0].nbytes
        # Images become float32. With hundreds of classes it is the logits that are large.
        return max(1, _CHUNK_BYTES // max(item * items, 4 * queries * one.ways))

    @cached_property
    def unit(self) -> int:
        return self.block if isinstance(self.method, TwoStageMethod) else min(
            self.block, max(1, _UNIT // self.chunk) * self.chunk)

    def cuts(self, shard: tuple[int, int]) -> tuple[int, int]:
        """(first, end) of the episodes of part `shard[0]` of `shard[1]`, on borders of units."""
        each = -(-self.block // self.unit)
        whole, rest = divmod(self.episodes, self.block)
        units = whole * each + -(-rest // self.unit)
        return tuple(min(self.episodes, at // each * self.block + at % each * self.unit)
                     for at in (units * shard[0] // shard[1], units * (shard[0] + 1) // shard[1]))

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
        self._drawn = start, self.source.indices(start, stop - start)
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
            indices, rows, done = drawn[at : at + self.unit], {}, 0
            measures = Measures(self.scores, len(self.bank.class_names), self.temperature)
            chunks = (indices[i : i + self.chunk] for i in range(0, len(indices), self.chunk))
            with torch.inference_mode():
                for logits, found in answers(self.method, (self.prepare(chunk.gather(self.bank)) for chunk in chunks)):
                    here = indices[done : done + len(logits)]
                    for name, values in (found | measures(logits, here.query_labels, here.classes)).items():
                        # Written into one array: small tensors kept alive among the freed features of each chunk would
                        # split the heap, and memory would grow with the number of episodes.
                        if name not in rows:
                            rows[name] = values.new_empty(len(indices), *values.shape[1:])
                        rows[name][done : done + len(here)] = values
                    done += len(here)
            yield Part(start + at, start + at + len(indices), rows, measures.totals)


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


def collect(scorer: Scorer, kept: Parts, *, shard: tuple[int, int] | None = None, workers: int = 1, progress: bool = False,
            label: str = "") -> tuple[Rows, Fingerprint]:
    """Score what `kept` does not hold yet and keep it there: (all rows that are known now, the fingerprint).

    shard    (i, n): only the i-th of n equal ranges of episodes; rows are complete if the others are kept already
    workers  processes that share the work, this one among them, one thread each; 1: this one alone
    """
    rows, fingerprint, gaps, position = Rows(scorer.episodes), Fingerprint(scorer), [], 0
    first, end = scorer.cuts(shard or (0, 1))
    for part in chain(kept.read(scorer.episodes, scorer.is_border), [Part(scorer.episodes, scorer.episodes, {}, {})]):
        gaps += [(max(position, first), min(part.start, end))]
        rows.add(part)
        position = part.stop
    gaps = [(low, high) for low, high in gaps if low < high]
    todo = sum(high - low for low, high in gaps)
    most = scorer.block if workers == 1 else max(1, todo // (_TASKS * workers * scorer.unit)) * scorer.unit
    tasks = [task for gap in gaps for task in scorer.split(*gap, most)]
    with (_scores(scorer, tasks, workers) as scores,
          tqdm(total=end - first, initial=end - first - todo, unit="ep", desc=label, disable=not progress,
               leave=False) as bar):
        for part in scores:
            if shard is None:
                fingerprint.reach(part.stop)
            rows.add(part)
            kept.add(part, rows.arrays)
            bar.update(len(part))
    if shard is not None:
        kept.flush(rows.arrays)
        if not rows.complete:  # others may have finished meanwhile
            rows = Rows(scorer.episodes)
            for part in kept.read(scorer.episodes, scorer.is_border):
                rows.add(part)
    return rows, fingerprint


@contextlib.contextmanager
def _scores(scorer: Scorer, tasks: list[tuple[int, int]], workers: int) -> Iterator[Iterable[Part]]:
    """The parts of all tasks in order, by this process alone or with `workers` - 1 others."""
    if workers == 1 or len(tasks) < 2:
        yield (part for task in tasks for part in scorer.score(*task))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that the threads of torch hold
    ended, end = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="fewshot-") as folder:
        setting = Path(folder) / "scorer.pickle"
        bank = scorer.bank.mapped(folder) if isinstance(scorer.bank, FeatureBank) else scorer.bank
        ours = replace(scorer, bank=bank)  # the same memory for all: twice as much would not fit the cache they share
        try:
            setting.write_bytes(pickle.dumps(ours))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise FewshotError(f"{type(scorer.method).__name__} cannot be sent to other processes ({error}); define it in a "
                               "module, or leave workers at 1") from error
        others, threads = min(workers, len(tasks)) - 1, torch.get_num_threads()
        with ProcessPoolExecutor(others, context, _begin, (str(setting), ended)) as pool:
            torch.set_num_threads(1)
            try:
                yield _shared(scorer, ours, tasks, pool, others)
            except BrokenProcessPool as error:
                raise FewshotError("a worker process has ended, perhaps for lack of memory: use fewer workers; a script "
                                   'needs its calls under if __name__ == "__main__"') from error
            finally:
                torch.set_num_threads(threads)
                end.close()  # the workers end at once, also those in the middle of a task
                pool.shutdown(cancel_futures=True)


def _shared(scorer: Scorer, ours: Scorer, tasks: list[tuple[int, int]], pool: ProcessPoolExecutor,
            others: int) -> Iterator[Part]:
    """The parts of all tasks in order. This process scores, too (`ours`), while the task that is due is with another one,
    also while the others start: what is left to it beside that is too little for a core of its own."""
    left, given, found, due = deque(enumerate(tasks)), {}, {}, 0
    while due < len(tasks):
        for number in [number for number, future in given.items() if future.done()]:
            found[number] = pickle.loads(given.pop(number).result())
        while left and len(given) < _AHEAD * others:
            number, task = left.popleft()
            given[number] = pool.submit(_score, task)
        if due in found:
            parts, drawn = found.pop(due)
            scorer.receive(tasks[due][0], EpisodeIndices(*(rows.long() for rows in drawn)))
            yield from parts
            due += 1
        elif left:
            number, task = left.popleft()
            found[number] = _scored(ours, task)
        else:
            wait(given.values(), return_when=FIRST_COMPLETED)


def _scored(scorer: Scorer, task: tuple[int, int]) -> tuple[list[Part], list[Tensor]]:
    """(the parts, row numbers of the episodes): these are sent along, because drawing them again for the fingerprint would
    take the first process longer."""
    parts, drawn = list(scorer.score(*task)), scorer.draw(*task)
    rows = (drawn.support, drawn.support_labels, drawn.query, drawn.query_labels, drawn.classes)
    return parts, [x.int() for x in rows]


def _begin(setting: str, ended: multiprocessing.connection.Connection) -> None:
    """In a worker: take the scorer, and end when the other side of `ended` closes, as it does when its process is killed."""
    global _scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard reaches all processes; the first one decides
    torch.set_num_threads(1)
    threading.Thread(target=lambda: (multiprocessing.connection.wait([ended]), os._exit(1)), daemon=True).start()
    _scorer = pickle.loads(Path(setting).read_bytes())


def _score(task: tuple[int, int]) -> bytes:
    sent = io.BytesIO()
    _Pickler(sent).dump(_scored(_scorer, task))
    return sent.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as arrays. Torch would send each through shared memory of its own, or take longer to write it than it took
    to compute."""

    def reducer_override(self, value):
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented
