"""`fewshot sweep`: jobs give what running the file gives, once; failures and interruptions cost only themselves."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.experiments.jobs import Batch, Jobs, sweep

pytest.importorskip("submitit", reason="needs submitit: pip install 'fewshot[slurm]'")
ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = '''"""A small experiment."""
from fewshot.experiments.running import run_experiment
from fewshot.evaluation.run import Run

RUNS = [Run(dataset="glyphs", backbone="pixels", method=method, queries={queries}, shots=shots, episodes={episodes})
        for method, shots in {pairs}]

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("method",))
'''
TWO = [("protonet", 1), ("nearest_neighbour", 1)]
TOO_MANY = ("protonet", 30)  # glyphs have 12 images or a few more
SLURM = {
    "srun": """#!/bin/bash
while [[ $1 != *python* ]]; do shift; done
exec "$@"
""",
    "sbatch": """#!/bin/bash
number=$(ls | grep -c ^submitted); number=$((number + 1))
cp "$1" submitted$number
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_ID=$number
if [ "$last" ]; then export SLURM_ARRAY_JOB_ID=$number; fi
for task in $(seq 0 ${last:-0}); do
    if [ "$last" ]; then export SLURM_ARRAY_TASK_ID=$task; fi
    bash "$1" > log$number.$task 2>&1 &
done
echo "Submitted batch job $number"
""",
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"
"""}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def experiment(tmp_path):
    def write(pairs=TWO, queries=5, episodes=30) -> Path:
        path = tmp_path / "experiments" / "small.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(EXPERIMENT.format(pairs=pairs, queries=queries, episodes=episodes))
        return path

    return write


@pytest.fixture
def start(tmp_path, images):
    """Start a process of Python in an empty folder; jobs import this checkout."""
    def call(*arguments) -> subprocess.Popen:
        environment = {**os.environ, "FEWSHOT_CACHE": str(images), "PYTHONPATH": str(ROOT), "COLUMNS": "200",
                       "OMP_NUM_THREADS": "1"}
        # A suite that runs in the background of a shell has SIGINT ignored, and so would the process.
        return subprocess.Popen([sys.executable, "-m", "fewshot", *map(str, arguments)], cwd=tmp_path, env=environment,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    return call


@pytest.fixture
def in_process(tmp_path, images, monkeypatch):
    """`sweep` with submitit's executor for debugging, which runs jobs in this process; and the tasks that were run."""
    monkeypatch.setenv("FEWSHOT_CACHE", str(images))
    monkeypatch.chdir(tmp_path)
    tasks, work = [], Batch.work
    monkeypatch.setattr(Batch, "work", lambda task: tasks.append(task) or work(task))

    def call(path, **settings):
        tasks.clear()
        jobs = Jobs(**{"executor": "debug", "at_once": 2, "cpus": torch.get_num_threads(), **settings})
        return sweep(path, jobs, "runs", progress=False), [(len(task.runs), task.prepare) for task in tasks]

    return call


def records(folder: Path) -> dict[str, tuple]:
    """Key -> what a result holds beside its time."""
    found = {}
    for path in folder.glob("[!.]*/result.json"):  # folders with a dot are being written
        summary = json.loads(path.read_text())
        found[path.parent.name] = (summary["accuracy"], summary["interval95"], summary["fingerprint"], summary["notes"],
                                   (path.parent / "episodes.safetensors").read_bytes())
    return found


def processes(text: str) -> list[int]:
    """Of the processes whose command holds `text`. Two times w: lines are not cut at the width of the terminal."""
    listing = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listing if text in line]


def test_jobs_give_what_the_file_gives_and_only_once(tmp_path, experiment, in_process, monkeypatch, capsys):
    path = experiment()
    assert in_process(path) == ([], [(2, True), (1, False), (1, False)]), "features first, then one job a run"
    monkeypatch.setattr(sys, "argv", [str(path), "--runs", "alone"])
    runpy.run_path(str(path), run_name="__main__")
    assert records(tmp_path / "runs") == records(tmp_path / "alone") and len(records(tmp_path / "runs")) == 2
    capsys.readouterr()
    assert in_process(path) == ([], []) and "2 of 2 runs are finished" in capsys.readouterr().out


def test_what_is_kept_beside_the_file_is_found_by_all(tmp_path, experiment, in_process, monkeypatch, capsys):
    path = experiment()
    monkeypatch.setattr(sys, "argv", [str(path), "--runs", "elsewhere", "--keep"])
    runpy.run_path(str(path), run_name="__main__")
    kept = records(path.parent / "kept")
    assert kept == records(tmp_path / "elsewhere") and len(kept) == 2
    assert in_process(path) == ([], []) and not records(tmp_path / "runs"), "nothing is left to a sweep"
    monkeypatch.setattr(sys, "argv", [str(path), "--runs", "runs"])
    runpy.run_path(str(path), run_name="__main__")
    assert not records(tmp_path / "runs"), "nor to the file itself"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["table", str(path), "--runs", str(tmp_path / "runs"), "--format", "csv"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{100 * accuracy:.6f}"[:7] in text for accuracy, *_ in kept.values()), text


@pytest.mark.slow
def test_only_what_is_missing_is_made(experiment, in_process):
    assert in_process(experiment(TWO[:1])) == ([], [(1, False)]), "nothing to share, so no job for the features alone"
    assert in_process(experiment([*TWO, ("simple_shot", 1)]), per_job=2) == ([], [(2, False)])


def test_a_failing_run_leaves_the_others_alone(tmp_path, experiment, in_process):
    (failure,), tasks = in_process(experiment([TOO_MANY, *TWO]), per_job=3)
    assert tasks == [(3, False)] and len(records(tmp_path / "runs")) == 2
    said = str(failure)
    assert said.startswith("failed: protonet on glyphs, 5-way 30-shot (log: ") and said.count("\n") <= 8
    assert "has 12 images; 30 shots and 5 queries need 35" in said


def test_what_cannot_be_made_is_left_out(experiment, in_process, capsys):
    path = experiment()
    path.write_text(path.read_text().replace('dataset="glyphs"', 'dataset="glyphs" if shots == 1 else "cub"')
                    .replace(str(TWO), str([*TWO, ("protonet", 5)])))
    failures, tasks = in_process(path)
    assert not failures and sum(count for count, prepare in tasks if not prepare) == 2
    assert "left out 1 of 3 runs, missing: data set cub" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_a_failing_run_and_the_table(tmp_path, experiment, start):
    process = start("sweep", experiment([*TWO, TOO_MANY]), "--jobs", "2")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 1 and "Traceback" not in out
    assert "failed: protonet on glyphs, 5-way 30-shot" in out + err and "1 runs failed" in err
    assert "nearest_neighbour" in out and len(records(tmp_path / "runs")) == 2, "the table of what was made"
    process = start("sweep", experiment(TWO))
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0 and "2 of 2 runs are finished" in out and "nearest_neighbour" in out, err
    assert (tmp_path / "experiments" / "results" / "small.md").is_file()


@pytest.mark.slow
def test_interruption_cancels_jobs_and_the_next_call_goes_on(tmp_path, experiment, start):
    process = start("sweep", experiment([("protonet", 1), ("tim_gd", 1), ("alpha_tim", 1)], episodes=600), "--jobs", "3")
    deadline = time.monotonic() + 200
    while not records(tmp_path / "runs") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "jobs cancelled, finished results are kept" in err and "Traceback" not in err, err
    kept = records(tmp_path / "runs")
    assert 1 <= len(kept) < 3
    assert not processes(f"submitit.core._submit {tmp_path}"), "no job goes on"
    process = start("sweep", experiment([("protonet", 1), ("nearest_neighbour", 1)], episodes=600))
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0 and "1 of 2 runs are finished" in out, err
    assert kept.items() <= records(tmp_path / "runs").items()


@pytest.mark.slow
def test_a_job_that_dies_is_reported_with_its_log(tmp_path, experiment, start):
    process = start("sweep", experiment([("tim_gd", 1)], episodes=600))
    deadline, found = time.monotonic() + 100, []
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = processes(f"submitit.core._submit {tmp_path}")
    os.kill(found[0], signal.SIGKILL)  # as the kernel does when memory runs out
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "1 runs failed" in err
    assert "failed: tim_gd on glyphs" in out + err and "the job ended without a result" in out + err
    assert not records(tmp_path / "runs")


def test_what_slurm_refuses_is_said(experiment, in_process, monkeypatch, tmp_path):
    for name, text in {"srun": "#!/bin/sh\n", "sbatch": "#!/bin/sh\necho invalid account >&2; exit 1\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(FewshotError, match="(?s)could not be submitted.*invalid account"):
        in_process(experiment(), executor="slurm", options={"account": "x"})


@pytest.mark.slow
def test_slurm_gets_job_arrays(tmp_path, experiment, start, monkeypatch):
    """With stand-ins for Slurm's commands, which run the jobs here."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in SLURM.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    process = start("sweep", experiment(), "--executor", "slurm", "--jobs", "1", "--memory", "4", "--partition", "fast",
                    "--time", "90", "--cpus", "3", "--slurm", "account=vision")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0 and "nearest_neighbour" in out, err
    assert len(records(tmp_path / "runs")) == 2
    features, runs = ((tmp_path / f"submitted{number}").read_text() for number in (1, 2))
    for line in ("--array=0-1%1", "--mem=4GB", "--partition=fast", "--time=90", "--cpus-per-task=3", "--account=vision",
                 "--job-name=fewshot-small"):
        assert f"#SBATCH {line}\n" in runs, runs
    assert "--array" not in features, "a job alone"


@pytest.mark.parametrize(("arguments", "text"), [
    (["--executor", "cloud"], "unknown executor 'cloud'"),
    (["--memory", "4"], "--memory beside --executor local"),
    (["--jobs", "0"], "jobs=0; it must be at least 1"),
    (["--executor", "slurm"], "--executor slurm cannot be used here"),
    (["--slurm", "account", "--executor", "slurm"], "'account' is not NAME=VALUE")])
def test_mistakes(experiment, arguments, text, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun here
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(experiment()), *arguments])
    assert stop.value.code == 2 and text in capsys.readouterr().err


def test_without_submitit_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(FewshotError, match=r"pip install 'fewshot\[slurm\]'"):
        Jobs().submitter(tmp_path, "any")
