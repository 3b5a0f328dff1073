"""Experiments in parts: only what is asked for is evaluated, and no table is written before all of its runs are there."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path

from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.run import Run
from fewshot.experiments.running import run_experiment
from fewshot.features.source import FeatureSource

TRANSDUCTIVE = Path(__file__).resolve().parents[2] / "experiments" / "transductive.py"
SETTING = {"dataset": "glyphs", "backbone": "pixels", "queries": 5, "episodes": 20}


def test_a_part_is_evaluated_and_not_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "small.py"
    runs = [Run(method="protonet", shots=shots, query_distribution=distribution, **SETTING)
            for shots in (1, 2, 5) for distribution in ("balanced", "dirichlet")]
    monkeypatch.setattr(sys, "argv", ["small", "--runs", str(tmp_path / "runs"), "--shots", "1", "5",
                                      "--distribution", "dirichlet"])
    found = run_experiment(str(file), runs)
    assert [(r.record.shots, r.record.query_distribution) for r in found] == [(1, "dirichlet"), (5, "dirichlet")]
    assert "2-shot" not in capsys.readouterr().out and not (tmp_path / "results").exists()
    monkeypatch.setattr(sys, "argv", ["small", "--runs", str(tmp_path / "runs"), "--shots", "1", "2", "5"])
    assert len(run_experiment(str(file), runs)) == 6
    assert "2-shot" in (tmp_path / "results" / "small.md").read_text()


def test_what_is_kept_is_not_written_again(tmp_path, monkeypatch):
    file, runs = tmp_path / "small.py", [Run(method="protonet", **SETTING)]
    written = []
    for folder in ("one", "one", "two"):  # found in its folder, found among what is kept
        monkeypatch.setattr(sys, "argv", ["small", "--runs", str(tmp_path / folder), "--keep"])
        (result,) = run_experiment(str(file), runs)
        written.append((tmp_path / "kept" / result.record.key / "episodes.safetensors").stat().st_mtime_ns)
    assert len(set(written)) == 1
    summary = tmp_path / "kept" / result.record.key / "result.json"
    right = summary.read_text()
    summary.write_text(json.dumps({**json.loads(right), "seconds": 1e6}))  # of an earlier measurement
    monkeypatch.setattr(sys, "argv", ["small", "--runs", str(tmp_path / "one"), "--keep"])
    run_experiment(str(file), runs)
    assert summary.read_text() == right, "a newer one replaces it"
    shutil.rmtree(tmp_path / "kept")
    shutil.rmtree(tmp_path / "one")
    (result,) = run_experiment(str(file), runs)  # measured again
    assert (tmp_path / "kept" / result.record.key / "episodes.safetensors").stat().st_mtime_ns > written[0]


def test_tables_of_settings_that_are_complete(tmp_path):
    """`tables` of experiments/transductive.py, with runs of a few episodes instead of its own."""
    module = runpy.run_path(str(TRANSDUCTIVE))
    few = [Run(method=method, shots=shots, **SETTING) for shots in (1, 5) for method in ("protonet", "soft_kmeans")]
    slow = [dataclasses.replace(run, episodes=10) for run in few[:2]]
    namespace = module["tables"].__globals__
    namespace |= {"__file__": str(tmp_path / "transductive.py"), "RUNS": [*few, *slow],
                  "PUBLISHED": [*few, *slow], "SLOW_EPISODES": 10, "TUNED": tmp_path}
    source = FeatureSource(cache=tmp_path / "cache")
    results = [evaluate(run, source=source) for run in (*few, *slow)]
    module["tables"](results[:3])
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["transductive_glyphs_5_way_1_shot.md"]
    module["tables"]([results[-1], *results[:4]])
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "transductive_glyphs_5_way_1_shot.md", "transductive_glyphs_5_way_5_shot.md"}
    module["tables"](results)
    text = (tmp_path / "results" / "transductive_glyphs_5_way_1_shot_putm.md").read_text()
    assert "soft_kmeans" in text and "10 episodes" in text


def test_tuned_values_have_a_column_of_their_own(tmp_path):
    namespace = runpy.run_path(str(TRANSDUCTIVE))["tables"].__globals__
    runs = [Run(method=method, **SETTING) for method in ("protonet", "soft_kmeans")]
    chosen = {**runs[1].parameters, "scale": 2.5}
    (tmp_path / "soft_kmeans.json").write_text(json.dumps({
        namespace["setting"](runs[1]): {"chosen": chosen, "reason": "highest mean"}}))
    namespace |= {"__file__": str(tmp_path / "transductive.py"), "PUBLISHED": runs, "TUNED": tmp_path}
    namespace["RUNS"] = namespace["with_tuned"](runs)
    source = FeatureSource(cache=tmp_path / "cache")
    results = [evaluate(run, source=source) for run in namespace["RUNS"]]
    namespace["tables"](results)
    text = (tmp_path / "results" / "transductive_glyphs_5_way_1_shot.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| soft_kmeans"))
    assert [cell.strip() for cell in row.split("|")[3:5]] == [results[1].accuracy.percent(), results[2].accuracy.percent()]
    assert "tuned values {" in text and "'scale': 2.5" in text and "highest mean." in text
