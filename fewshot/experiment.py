"""What every file of `experiments/` shares: run a list of `Run`s, print and keep the table."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fewshot.evaluate import Result, evaluate
from fewshot.files import write_atomically
from fewshot.run import Run
from fewshot.store import Store
from fewshot.tables import comparison_table, results_table


def run_experiment(file: str, runs: Sequence[Run], *, rows: Sequence[str] = ("backbone", "method")) -> list[Result]:
    """Evaluate `runs` (finished ones are found in the store) and write `results/<name>.md` and `.csv` beside `file`.

    The command line takes --data-root, --runs and --episodes (fewer episodes for a trial, whose table is only printed).
    """
    path = Path(file)
    parser = argparse.ArgumentParser(description=f"experiment {path.stem}; see the head of {path.name}")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: FEWSHOT_DATA, else data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stored results")
    parser.add_argument("--episodes", type=int, help="fewer episodes, for a trial")
    arguments = parser.parse_args()
    store = Store(arguments.runs)
    results = []
    for number, run in enumerate(runs, 1):
        trial = run if arguments.episodes is None else dataclasses.replace(run, episodes=arguments.episodes)
        results.append(evaluate(trial, store=store, progress=True, root=arguments.data_root, cache=arguments.runs / "cache"))
        print(f"[{number}/{len(runs)}] {results[-1]!r} in {results[-1].seconds:.0f} s", flush=True)
    table = results_table(results, rows=rows)
    table.print()
    if arguments.episodes is None:
        write_atomically(path.parent / "results" / f"{path.stem}.md", table.to_markdown().encode())
        write_atomically(path.parent / "results" / f"{path.stem}.csv", table.to_csv().encode())
    return results


def write_differences(file: str, results: Sequence[Result], name: str) -> None:
    """Paired differences between `results` (one protocol) into `results/<stem>_<name>.md` beside `file`."""
    path = Path(file)
    write_atomically(path.parent / "results" / f"{path.stem}_{name}.md", comparison_table(results).to_markdown().encode())
