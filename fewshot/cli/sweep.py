"""`fewshot sweep`: the runs of an experiment file as jobs."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import options_from_types, refuse_given
from fewshot.cli.request import Places
from fewshot.cli.values import named
from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.core.settings import anything, setting

_SLURM_ONLY = ("memory", "partition", "slurm")


@dataclass
class JobOptions:
    """How jobs run."""

    executor: str = setting("local", "local (processes on this machine) or slurm (a job array)", anything)
    jobs: int | None = setting(None, "jobs at the same time (default: local as many as there are cores for, slurm as many "
                               "as it lets)", anything)
    per_job: int = setting(1, "runs in one job; a job takes seconds to start: more for short runs", anything)
    cpus: int = setting(1, "CPUs and threads of a job", anything)
    time: int = setting(24 * 60, "limit of a job in minutes", anything)
    memory: float | None = setting(None, "GB a job (slurm)", anything)
    partition: str | None = setting(None, "partition to submit to (slurm)", anything)
    slurm: list[str] | None = setting(None, "another option of sbatch, e.g. account=vision; repeat for more", anything,
                                      metavar="NAME=VALUE")


@options_from_types()
def sweep(context: typer.Context,
          experiment: Annotated[Path, typer.Argument(help="a file of experiments/ that defines RUNS")],
          how: JobOptions, places: Places) -> None:
    """Make the missing results of an experiment as jobs, then run its file, which finds them and prints its table.

    Finished runs are not repeated: after an interruption (which cancels the jobs) or a failure the same command goes on.
    Features that several jobs need are extracted by one job first. Failed runs are named with the last lines of their
    log, the others go on, and the exit code is 1. Needs the package submitit.
    """
    from fewshot.experiments.jobs import Jobs
    from fewshot.experiments.jobs import sweep as make

    if how.executor not in ("local", "slurm"):
        raise FewshotError(unknown_message("executor", how.executor, ["local", "slurm"]))
    if how.executor == "local":
        refuse_given(context, _SLURM_ONLY, "beside --executor local: it is for slurm")
    settings = Jobs(how.executor, how.jobs, how.per_job, how.cpus, how.time, how.memory, how.partition,
                    dict(named(how.slurm)))
    failures = make(experiment, settings, places.runs, places.data_root)
    if failures:
        _print_found(experiment, places.runs)
        typer.secho(f"{len(failures)} runs failed; the same command tries them again", fg="red", err=True)
        raise typer.Exit(1)
    _run_file(experiment, places.runs, places.data_root)


def _run_file(experiment: Path, runs: Path, data_root: Path | None) -> None:
    """The program itself, which finds all results and prints and writes its tables."""
    kept = sys.argv
    sys.argv = [str(experiment), "--runs", str(runs), *(["--data-root", str(data_root)] if data_root is not None else [])]
    try:
        runpy.run_path(str(experiment), run_name="__main__")
    finally:
        sys.argv = kept


def _print_found(experiment: Path, runs: Path) -> None:
    """The table of what is there; the program itself would try the failed runs again, here."""
    from fewshot.evaluation.store import experiment_store
    from fewshot.experiments.published import find_results, load_experiment
    from fewshot.reporting.accuracy_tables import results_table

    wanted = load_experiment(experiment).runs
    found = find_results(wanted, experiment_store(experiment, runs))
    if found:
        results_table([found[run.key] for run in wanted if run.key in found]).print()
