"""The runs of an experiment file as jobs: processes on this machine, or a Slurm job array (by way of submitit)."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fewshot.core.bars import tqdm
from fewshot.core.checked import check_at_least, check_positive
from fewshot.core.errors import FewshotError
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store, experiment_store
from fewshot.experiments.published import find_results, load_experiment
from fewshot.experiments.running import possible_runs

if TYPE_CHECKING:
    from submitit import Executor, Job

_LINES = 8  # of a log that are shown of a failed job


@dataclass(frozen=True)
class Jobs:
    """How jobs run.

    executor    "local" or "slurm"
    at_once     jobs at the same time; None: local as many as there are cores for, slurm as many as it lets
    per_job     runs in one job
    cpus        threads of a job, and CPUs asked of Slurm;  minutes: limit of a job
    memory      GB a job, partition, and further sbatch options (account, qos, ...) are for Slurm only
    """

    executor: str = "local"
    at_once: int | None = None
    per_job: int = 1
    cpus: int = 1
    minutes: int = 24 * 60
    memory: float | None = None
    partition: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_once = 1 if self.at_once is None else self.at_once
        check_at_least(1, jobs=at_once, per_job=self.per_job, cpus=self.cpus, time=self.minutes)
        if self.memory is not None:
            check_positive(memory=self.memory)

    def submitter(self, folder: Path, name: str) -> Executor:
        """submitit's executor with these settings, its files in `folder`; FewshotError where it cannot be had."""
        try:
            import submitit
        except ImportError:
            raise FewshotError("sweeps need the package submitit: pip install 'fewshot[slurm]'; without it run the file "
                               "itself (python experiments/NAME.py), one run after the other") from None
        try:
            made = submitit.AutoExecutor(folder=folder, cluster=self.executor)
        except (RuntimeError, ValueError) as error:
            raise FewshotError(f"--executor {self.executor} cannot be used here ({error}); choose local, or slurm on a "
                               "machine that has its commands srun and sbatch") from None
        made.update_parameters(name=name, timeout_min=self.minutes, cpus_per_task=self.cpus, mem_gb=self.memory,
                               slurm_partition=self.partition, slurm_array_parallelism=self.at_once,
                               slurm_additional_parameters=self.options or None)
        return made

    def room(self, running: int, waiting: int) -> int:
        """How many jobs to submit now: to Slurm all, as one array that limits itself."""
        if self.executor == "slurm":
            return waiting
        return (self.at_once or max(1, (os.cpu_count() or 1) // self.cpus)) - running


@dataclass(frozen=True)
class Batch:
    """One job: `runs` on the same images and features are evaluated, or (`prepare`) only their features extracted."""

    runs: tuple[Run, ...]
    folder: Path
    data_root: Path | None
    threads: int
    prepare: bool = False

    def work(self) -> list[str | None]:
        """In the job. For each run None, or the traceback of what stopped it; the runs after it go on."""
        import torch

        from fewshot.evaluation.evaluate import evaluate
        from fewshot.evaluation.resolve import resolve
        from fewshot.features.source import FeatureSource

        torch.set_num_threads(self.threads)
        source, store = FeatureSource(self.data_root, self.folder / "cache"), Store(self.folder)
        outcomes: list[str | None] = []
        for run in self.runs:
            try:
                if self.prepare:
                    resolve(run, source=source)
                else:
                    print(evaluate(run, store=store, source=source), flush=True)
                outcomes.append(None)
            except Exception:  # whatever stops one run is reported with it and leaves the others alone
                outcomes.append(traceback.format_exc())
        return outcomes


@dataclass(frozen=True)
class Failure:
    """A run without result: the last lines of what stopped it, and the log of its job."""

    run: Run
    reason: str
    log: Path

    def __str__(self) -> str:
        lines = "\n".join(f"    {line}" for line in self.reason.strip().splitlines()[-_LINES:])
        return f"failed: {self.run.method} on {self.run.dataset}, {self.run.protocol} (log: {self.log})\n{lines}"


def sweep(path: str | Path, jobs: Jobs, folder: str | Path = "runs", data_root: str | Path | None = None,
          progress: bool = True) -> list[Failure]:
    """Make the missing results of the RUNS of an experiment file in `folder`; the runs that failed.

    A run counts as finished where `folder` has a result with its specification and weights. Where several jobs need the
    same features, one job extracts them first. Interrupted, jobs are cancelled and what is finished is kept: the next
    call goes on. Raises FewshotError for an unknown file, and where jobs cannot be started.
    """
    path, folder = Path(path).resolve(), Path(folder).resolve()
    data_root = None if data_root is None else Path(data_root).resolve()
    experiment, store = load_experiment(path), experiment_store(path, folder)
    store.prepare()
    submitter = jobs.submitter(folder / "jobs" / path.stem, f"fewshot-{path.stem}")
    possible = possible_runs(experiment.runs, data_root)
    found = find_results(possible, store)
    missing = [run for run in possible if run.key not in found]
    print(f"{len(possible) - len(missing)} of {len(possible)} runs are finished", flush=True)
    groups = defaultdict(list)
    for run in missing:
        groups[_features(run)].append(run)
    first = [Batch(tuple(runs), folder, data_root, jobs.cpus, prepare=True) for runs in groups.values()
             if len(runs) > jobs.per_job]
    with tqdm(total=len(missing), unit="run", desc=path.stem, disable=not progress or not missing) as bar:
        failures = _work(submitter, jobs, first, bar)
        lost = {failure.run.key for failure in failures}
        tasks = []
        for runs in groups.values():
            left = [run for run in runs if run.key not in lost]
            tasks += [Batch(tuple(left[at:at + jobs.per_job]), folder, data_root, jobs.cpus)
                      for at in range(0, len(left), jobs.per_job)]
        return failures + _work(submitter, jobs, tasks, bar)


def _features(run: Run) -> str:
    """Equal for runs that read the same images with the same backbone."""
    return json.dumps([run.dataset, run.split, run.data_options, run.backbone, run.weights, run.backbone_options],
                      sort_keys=True)


def _work(submitter: Executor, jobs: Jobs, tasks: Sequence[Batch], bar: tqdm) -> list[Failure]:
    """Run all `tasks`; interrupted, cancel those that are not done."""
    waiting, failures = list(tasks), []
    running: dict[Job, Batch] = {}
    try:
        while waiting or running:
            if (room := jobs.room(len(running), len(waiting))) > 0 and waiting:
                running |= zip(_submitted(submitter, waiting[:room]), waiting[:room], strict=True)
                waiting = waiting[room:]
            for job in [job for job in running if job.done()]:
                task = running.pop(job)
                failed = _failures(job, task)
                failures += failed
                for failure in failed:
                    bar.write(str(failure))
                bar.update(len(failed if task.prepare else task.runs))
                bar.set_postfix(failed=len(failures), refresh=True)
            time.sleep(0.2)
    except KeyboardInterrupt as stop:
        for job in running:
            job.cancel(check=False)
        deadline = time.monotonic() + 60  # a second, on a machine that is not busy
        while jobs.executor == "local" and not all(job.done() for job in running) and time.monotonic() < deadline:
            time.sleep(0.1)
        raise KeyboardInterrupt(f"interrupted: {len(running)} jobs cancelled, finished results are kept; the same command "
                                "goes on") from stop
    return failures


def _submitted(submitter: Executor, tasks: Sequence[Batch]) -> list[Job]:
    from submitit.core.utils import FailedJobError

    try:
        with _own_stderr(submitter.folder / "controllers.log"):
            return submitter.map_array(Batch.work, tasks)
    except (FailedJobError, OSError) as error:
        raise FewshotError(f"jobs could not be submitted: {str(error).strip()}") from None


def _failures(job: Job, task: Batch) -> list[Failure]:
    log = job.paths.stderr
    error = job.exception()
    if error is None:
        return [Failure(run, reason, log) for run, reason in zip(task.runs, job.result(), strict=True) if reason]
    # The job itself ended: out of memory, out of time, a broken installation. Runs it had finished are in the store.
    kept = () if task.prepare else find_results(task.runs, Store(task.folder))
    reason = log.read_text(errors="replace") if log.is_file() else str(error)
    reason += f"\nthe job ended without a result, state {job.state}"
    return [Failure(run, reason, log) for run in task.runs if run.key not in kept]


@contextlib.contextmanager
def _own_stderr(path: Path) -> Iterator[None]:
    """Processes started here write what they have to say to `path`: submitit's local ones end an interruption with a
    traceback on the user's terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
