"""`fewshot sweep`: the runs of an experiment file as jobs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.options import DataRoot, Runs, named, refuse_given

_SLURM_ONLY = ("memory", "partition", "slurm")


def sweep(context: typer.Context,
          experiment: Annotated[Path, typer.Argument(help="a file of experiments/ that defines RUNS")],
          executor: Annotated[str, typer.Option(help="local (processes on this machine) or slurm (a job array)")] = "local",
          jobs: Annotated[int | None, typer.Option(help="jobs at the same time (default: local as many as there are cores "
                                                   "for, slurm as many as it lets)")] = None,
          per_job: Annotated[int, typer.Option(help="runs in one job; a job takes seconds to start: more for short runs")]
          = 1,
          cpus: Annotated[int, typer.Option(help="CPUs and threads of a job")] = 1,
          time: Annotated[int, typer.Option(help="limit of a job in minutes")] = 24 * 60,
          memory: Annotated[float | None, typer.Option(help="GB a job (slurm)")] = None,
          partition: Annotated[str | None, typer.Option(help="partition to submit to (slurm)")] = None,
          slurm: Annotated[list[str] | None, typer.Option("--slurm", metavar="NAME=VALUE", help="another option of sbatch, "
                                                          "e.g. account=vision; repeat for more")] = None,
          data_root: DataRoot = None, runs: Runs = Path("runs")):
    """Make the missing results of an experiment as jobs, then run its file, which finds them and prints its table.

    Finished runs are not repeated: after an interruption (which cancels the jobs) or a failure the same command goes on.
    Features that several jobs need are extracted by one job first. Failed runs are named with the last lines of their
    log, the others go on, and the exit code is 1. Needs the package submitit.
    """
    from fewshot.core.registry import unknown_message
    from fewshot.experiments.jobs import FewshotError, Jobs
    from fewshot.experiments.jobs import sweep as make

    if executor not in ("local", "slurm"):
        raise FewshotError(unknown_message("executor", executor, ["local", "slurm"]))
    if executor == "local":
        refuse_given(context, _SLURM_ONLY, "beside --executor local: it is for slurm")
    settings = Jobs(executor, jobs, per_job, cpus, time, memory, partition, dict(named(slurm)))
    failures = make(experiment, settings, runs, data_root)
    if failures:
        _print_found(experiment, runs, data_root)
        typer.secho(f"{len(failures)} runs failed; the same command tries them again", fg="red", err=True)
        raise typer.Exit(1)
    _run_file(experiment, runs, data_root)


def _run_file(experiment: Path, runs: Path, data_root: Path | None) -> None:
    """The program itself, which finds all results and prints and writes its tables."""
    kept = sys.argv
    sys.argv = [str(experiment), "--runs", str(runs), *(["--data-root", str(data_root)] if data_root is not None else [])]
    try:
        runpy.run_path(str(experiment), run_name="__main__")
    finally:
        sys.argv = kept


def _print_found(experiment: Path, runs: Path, data_root: Path | None) -> None:
    """The table of what is there; the program itself would try the failed runs again, here."""
    from fewshot.evaluation.store import experiment_store
    from fewshot.experiments.published import find_results, load_experiment
    from fewshot.reporting.accuracy_tables import results_table

    wanted = load_experiment(experiment).runs
    found = find_results(wanted, experiment_store(experiment, runs))
    if found:
        results_table([found[run.key] for run in wanted if run.key in found]).print()
