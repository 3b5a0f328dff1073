"""Measured beside published: what is put together, what is marked, and what is said to be missing."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fewshot.backbones import create_backbone
from fewshot.backbones.weights import save_weights
from fewshot.cli.app import app
from fewshot.core.errors import FewshotError
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.experiments.published import (
    Experiment,
    Published,
    find_results,
    load_experiment,
    numbers,
    obstacle,
    published_table,
    weights_id,
)
from fewshot.reporting.table import TIED

RUN = Run(dataset="glyphs", backbone="conv4", method="pt_map", shots=5, episodes=400)
NUMBER = Published("pt_map", "glyphs", "conv4", 5, 5, "balanced", 60.0, 0.5, "a paper")


def result(run=RUN, accuracy=0.6, weights="random:0", data="d" * 64) -> Result:
    """Half width 0.98 percentage points."""
    noise = torch.linspace(-1, 1, 400, dtype=torch.float64).mul(0.1725)
    return Result(record=run.record(weights=weights, data=data), correct=accuracy + noise, fingerprint="e",
                  seconds=1.0)


def experiment(*runs, published=(NUMBER,), path="experiments/x.py"):
    return Experiment(Path(path), runs or (RUN,), tuple(published))


@pytest.mark.parametrize(("accuracy", "interval", "marked"), [
    (0.6, 0.5, False), (0.61, 0.5, False), (0.6147, 0.5, False), (0.6150, 0.5, True), (0.585, 0.5, True),
    (0.6097, None, False), (0.6100, None, True)])
def test_marked_is_what_differs_by_more_than_both_intervals(accuracy, interval, marked):
    made = result(accuracy=accuracy)
    assert made.accuracy.half_width == pytest.approx(0.0098, abs=5e-5)
    number = dataclasses.replace(NUMBER, interval=interval)
    (row,) = published_table(experiment(published=[number]), [made]).cells
    assert row[0].mean == pytest.approx(0.6) and row[1].mean == pytest.approx(accuracy)
    assert (row[1].mark == TIED) is marked
    text = published_table(experiment(published=[number]), [made]).to_markdown()
    assert ("60.00 ± 0.50" in text) is (interval is not None) and "nan" not in text


@pytest.mark.parametrize("change", [
    {"shots": 1}, {"ways": 10}, {"query_distribution": "dirichlet"}, {"method": "soft_kmeans", "parameters": {}},
    {"parameters": {"scale": 20.0}}, {"backbone": "resnet12"}])
def test_a_number_is_put_beside_exactly_its_setting(change):
    other = dataclasses.replace(RUN, **change)
    assert NUMBER.matches(RUN) and not NUMBER.matches(other)
    table = published_table(experiment(RUN, other), [result(other)])
    assert [[cell is not None for cell in row] for row in table.cells] == [[True, False], [False, True]]


def test_parameters_of_a_number_are_those_that_differ_from_the_defaults():
    (number,) = numbers("pt_map", "glyphs", "conv4", "s", (5, 60.0), scale=20.0, power=0.5)
    assert number.interval is None
    assert number.matches(dataclasses.replace(RUN, parameters={"scale": 20.0})) and not number.matches(RUN)


def test_stored_results_are_found_by_the_content_of_the_weights(tmp_path):
    network = create_backbone("conv4", channels=1, image_size=28, seed=3)
    sha256 = save_weights(network, tmp_path / "a.safetensors")
    run = dataclasses.replace(RUN, weights=str(tmp_path / "a.safetensors"))
    assert weights_id("conv4", str(tmp_path / "a.safetensors"), "protonet") == sha256
    assert weights_id("conv4", None, "protonet") == "random:0"
    assert weights_id("pixels", None, "protonet") == create_backbone("pixels").weights_id
    stored = [result(), result(weights="0" * 64), result(weights=sha256, accuracy=0.7)]
    found = find_results([RUN, run], stored)
    assert found == {RUN.key: stored[0], run.key: stored[2]}
    with pytest.raises(FewshotError, match="differ only in the images"):
        find_results([RUN], [result(), result(data="f" * 64)])
    assert find_results([RUN], [result(dataclasses.replace(RUN, episodes=300))]) == {}, "another number of episodes"


def test_what_is_missing_is_said(tmp_path):
    runs = [RUN, *(Run(dataset="mini_imagenet", backbone="wrn28_10", weights=str(tmp_path / "wrn.safetensors"), shots=s)
                   for s in (1, 5))]
    alone = dataclasses.replace(NUMBER, backbone="CLIP-RN50", ways=None)
    table = published_table(experiment(*runs, published=[NUMBER, alone]), [], tmp_path)
    notes = "\n".join(table.notes)
    assert ("Missing for 2 of 3 runs: data set mini_imagenet (`fewshot data --how mini_imagenet`); weights "
            "wrn.safetensors in experiments/weights.") in notes
    assert f"Not made yet, 1 of 3 runs: python experiments/x.py --data-root {tmp_path}" in notes
    assert "Published without a run here: 1 of 2" in notes and "Published in a paper." in notes
    assert obstacle(RUN, tmp_path) is None
    (tmp_path / "wrn.safetensors").write_bytes(b"no weights")
    assert "not a readable weights file" in obstacle(runs[1], tmp_path)


def test_rows_that_would_look_the_same_show_their_parameters():
    other = dataclasses.replace(NUMBER, parameters={"scale": 20.0})
    labels = published_table(experiment(published=[NUMBER, other]), []).labels
    assert [label[2] for label in labels] == ["pt_map", "pt_map (scale=20.0)"]
    assert published_table(experiment(published=[other]), []).labels[0][2] == "pt_map"


def test_the_table_command_shows_stored_results_and_evaluates_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["fewshot.evaluation.evaluate"], "collect", lambda *_, **__: pytest.fail("evaluated"))
    file = tmp_path / "x.py"
    file.write_text("from fewshot.evaluation.run import Run\nfrom fewshot.experiments.published import numbers\n"
                    "RUNS = [Run(dataset='glyphs', method='pt_map', shots=s, episodes=400) for s in (1, 5)]\n"
                    "PUBLISHED = numbers('pt_map', 'glyphs', 'conv4', 'a paper', (1, 40.0, 1.0), (5, 70.0, 0.2))\n")
    Store(tmp_path / "runs").save(result())
    done = CliRunner().invoke(app, ["table", str(file), "--runs", str(tmp_path / "runs"), "--format", "markdown"])
    assert done.exception is None, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| glyphs")]
    assert "40.00 ± 1.00" in rows[0] and rows[0].count("–") == 1
    assert "70.00 ± 0.20" in rows[1] and "60.00 ± 0.98 †" in rows[1]
    assert "Not made yet, 1 of 2 runs" in done.output
    wrong = tmp_path / "y.py"
    wrong.write_text("")
    for name, message in ((wrong, "defines no RUNS"), (tmp_path / "z.py", "no experiment at")):
        with pytest.raises(FewshotError, match=message):
            load_experiment(name)


def test_results_with_base_statistics_are_found():
    run = dataclasses.replace(RUN, method="simple_shot", parameters={})
    made = result(run)
    made = dataclasses.replace(made, record=made.record.changed(base="b" * 64))
    assert find_results([run], [made]) == {run.key: made}
