"""The work of an evaluation shared by threads of this process, or by several processes: the same parts, in order."""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.plugins import load_plugins
from fewshot.data.banks import FeatureBank
from fewshot.episodes.sampler import EpisodeIndices, joined
from fewshot.evaluation.progress import Part

if TYPE_CHECKING:
    from fewshot.evaluation.scorer import Scorer

_AHEAD = 2  # tasks that wait for each of the others, so that none waits for this one
_DRAWN = 4  # units whose row numbers are drawn in one call: the threads that score need not wait for more
_TASKS = 8  # a worker, at least, so that all end at about the same time

_scorer: Scorer  # of a worker, since `_begin`


def task_size(scorer: Scorer, episodes: int, workers: int) -> int:
    """Episodes of a task, at most, for `Scorer.split`."""
    return scorer.block if workers == 1 else max(1, episodes // (_TASKS * workers * scorer.unit)) * scorer.unit


def shared(scorer: Scorer, tasks: list[tuple[int, int]], workers: int) -> AbstractContextManager[Iterable[Part]]:
    """The parts of all tasks in order, made by this process alone or with `workers` - 1 others."""
    if workers > 1 and len(tasks) > 1:
        return _by_processes(scorer, tasks, workers)
    units = sum(-(-(stop - start) // scorer.unit) for start, stop in tasks)
    threads = torch.get_num_threads()
    if scorer.method.inputs == "features" and scorer.device.type == "cpu" and min(threads, units) > 1:
        return _by_threads(scorer, tasks, threads)
    return contextlib.nullcontext(part for task in tasks for part in scorer.score(*task))


@contextlib.contextmanager
def _by_threads(scorer: Scorer, tasks: list[tuple[int, int]], threads: int) -> Iterator[Iterable[Part]]:
    """Each unit by one of `threads` threads: small tensors gain little from several threads inside an operator."""
    stopped = threading.Event()
    with ThreadPoolExecutor(threads, "fewshot", torch.set_num_threads, (1,)) as pool:
        torch.set_num_threads(1)
        try:
            yield _from_threads(scorer, tasks, pool, threads, stopped)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _from_threads(scorer: Scorer, tasks: list[tuple[int, int]], pool: Executor, threads: int,
           stopped: threading.Event) -> Iterator[Part]:
    """Part after part. This thread draws the row numbers, ahead of those that score."""
    def submitted() -> Iterator[tuple[tuple[int, int], EpisodeIndices, Future[Part]]]:
        for task in tasks:
            for start, stop in scorer.split(*task, _DRAWN * scorer.unit):
                for unit in scorer.drawn_from.indices(start, stop - start).split(scorer.unit):
                    yield task, unit, pool.submit(scorer.score_unit, start, unit, lambda: not stopped.is_set())
                    start += len(unit)

    running: deque[tuple[tuple[int, int], EpisodeIndices, Future[Part]]] = deque()
    left, scored = submitted(), []
    while True:
        running.extend(itertools.islice(left, _AHEAD * threads + 1 - len(running)))
        if not running:
            return
        (start, stop), unit, future = running.popleft()
        part = future.result()
        scored.append(unit)
        if part.stop == stop:
            scorer.receive(start, joined(scored))  # for the fingerprint
            scored = []
        yield part


@contextlib.contextmanager
def _by_processes(scorer: Scorer, tasks: list[tuple[int, int]], workers: int) -> Iterator[Iterable[Part]]:
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
                yield _from_processes(scorer, ours, tasks, pool, others)
            except BrokenProcessPool as error:
                raise FewshotError("a worker process has ended, perhaps for lack of memory: use fewer workers; a script "
                                   'needs its calls under if __name__ == "__main__"') from error
            finally:
                torch.set_num_threads(threads)
                end.close()  # the workers end at once, also those in the middle of a task
                pool.shutdown(cancel_futures=True)


def _from_processes(scorer: Scorer, ours: Scorer, tasks: list[tuple[int, int]], pool: ProcessPoolExecutor,
            others: int) -> Iterator[Part]:
    """The parts of all tasks in order. This process scores, too (`ours`), while the task that is due is with another one,
    also while the others start: what is left to it beside that is too little for a core of its own."""
    left, due = deque(enumerate(tasks)), 0
    given: dict[int, Future[bytes]] = {}
    found: dict[int, tuple[list[Part], list[Tensor]]] = {}
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
    load_plugins()  # a method may come from one of them
    _scorer = pickle.loads(Path(setting).read_bytes())


def _score(task: tuple[int, int]) -> bytes:
    sent = io.BytesIO()
    _Pickler(sent).dump(_scored(_scorer, task))
    return sent.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as arrays. Torch would send each through shared memory of its own, or take longer to write it than it took
    to compute."""

    def reducer_override(self, value: object) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented
