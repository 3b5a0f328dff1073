"""Tables beside accuracy: the numbers are those of the statistics, and the notes say what they cover."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from fewshot.core.errors import FewshotError
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.evaluation.run import Run
from fewshot.reporting.accuracy_tables import results_table
from fewshot.reporting.metric_tables import metrics_table, pairs_table, ranks_table, seeds_table
from fewshot.reporting.table import BEST, TIED
from fewshot.statistics import bootstrap_interval, class_interval, holm, rank, worst_share
from tests.evaluation.test_evaluate import toy_bank
from tests.reporting.test_tables import made

METHODS = ("protonet", "pt_map", "bd_cspn")


@pytest.fixture(scope="module")
def evaluated():
    run, bank = Run(episodes=150), toy_bank()
    val = dataclasses.replace(toy_bank(seed=5), split="val")
    return [evaluate(run, bank, method="protonet", calibrate=val), evaluate(run, bank, method="nearest_neighbour")]


def test_pairs_hold_the_differences_and_corrected_p_values():
    results = [made(0.004 * i, i, method=m) for i, m in enumerate(METHODS)]
    table = pairs_table(results)
    by_name = {r.record.method: r for r in results}
    found = [compare(by_name[a], by_name[b]) for a, b in table.labels]
    p = holm([c.p_value for c in found])
    for row, record, comparison, corrected in zip(table.cells, table.records, found, p, strict=True):
        assert row[0].mean == comparison.difference.mean >= 0 and row[2].mean == comparison.probability > 0.5
        assert record["p_holm"] == corrected == row[4].mean >= row[3].mean == comparison.p_value
        assert row[1] is None and row[0].mark == (TIED if corrected >= 0.05 else "")
    assert "+0." in table.to_markdown() and "corrected for the 3 pairs" in table.to_markdown()
    with pytest.raises(FewshotError, match="different episodes"):
        pairs_table([made(), made(seed=1, fingerprint="other")])


def test_pairs_over_classes(evaluated):
    a, b = sorted(evaluated, key=lambda r: -r.accuracy.mean)
    cell = pairs_table(evaluated).cells[0][1]
    assert cell.half_width == class_interval(a.correct - b.correct, a.measures["classes"]).half_width


def test_ranks_over_episodes_and_over_protocols():
    results = [made(0.01 * i, i, method=m) for i, m in enumerate(METHODS)]
    table = ranks_table(results)
    wanted = rank(np.stack([r.correct for r in results]))
    assert [row[0].mean for row in table.cells] == sorted(wanted.ranks) and table.labels[0] == ("bd_cspn",)
    assert table.cells[0][0].mark == BEST and f"{wanted.critical_difference:.2f}" in table.notes[0]
    many = [made(0.01 * i, i, method=m, shots=k, fingerprint=str(k)) for i, m in enumerate(METHODS) for k in (1, 5)]
    table = ranks_table(many)
    assert [row[0].mean for row in table.cells] == [1, 2, 3] and "2 protocols" in table.notes[0]
    assert {row[0].mark for row in table.cells} == {TIED}, "two protocols cannot tell three methods apart"
    with pytest.raises(FewshotError, match="no result of protonet on glyphs, 5-way 5-shot"):
        ranks_table(many[:1] + many[2:])


def test_metrics_are_those_measured(evaluated):
    table = metrics_table(evaluated)
    rows = dict(zip(table.labels, table.cells, strict=True))
    column = {name: j for j, name in enumerate(table.columns)}
    row, plain = rows["protonet", "5-way 1-shot"], rows["nearest_neighbour", "5-way 1-shot"]
    summary = evaluated[0].summary()
    for name, key in (("NLL", "nll"), ("Brier", "brier"), ("ECE", "calibration_error"), ("macro accuracy", "macro_accuracy"),
                      ("NLL (calibrated)", "nll_calibrated"), ("ECE (calibrated)", "calibration_error_calibrated")):
        assert row[column[name]].mean == pytest.approx(summary[key])
    assert row[column["worst tenth"]].mean == pytest.approx(worst_share(evaluated[0].correct).mean)
    assert plain[column["NLL"]] is None and "AUROC (logit)" not in column
    text = table.to_markdown()
    assert f"{summary['nll']:.4f} ± " in text and f"temperature {summary['temperature']:.3g}" in text and "15 bins" in text
    assert "–" in text and "NLL value" in table.to_csv(wide=True)
    assert "evaluate with --metrics" in metrics_table(evaluated[1:]).to_markdown()


def test_the_bootstrap_interval_is_shown_and_named(evaluated):
    table = results_table(evaluated, interval="bootstrap")
    shown = sorted(cell.half_width for (cell,) in table.cells)
    assert shown == sorted(bootstrap_interval(r.correct).half_width for r in evaluated)
    assert "bootstrap, half its length, over" in table.notes[0] and "not the choice of classes" in table.notes[0]
    many = dataclasses.replace(evaluated[0], correct=torch.zeros(200_001))
    with pytest.raises(FewshotError, match="use the interval over episodes"):
        many.interval("bootstrap")


def test_open_set_measures_are_shown():
    result = evaluate(Run(episodes=50, open_classes=2, open_queries=5), toy_bank())
    table = metrics_table([result])
    row = dict(zip(table.columns, table.cells[0], strict=True))
    assert row["AUROC (logit)"].mean == pytest.approx(float(result.measures["auroc_logit"].mean()))
    assert table.labels[0][1] == "5-way 1-shot, 2 open classes" and "rejected as there are queries" in table.to_markdown()


def test_the_interval_over_classes_is_shown_and_named(evaluated):
    table = results_table(evaluated, interval="classes")
    by_method = {r.record.method: r.over_classes.half_width for r in evaluated}
    for label, (cell,) in zip(table.labels, table.cells, strict=True):
        assert cell.half_width == by_method[label[table.headings.index("method")]]
    assert "choice of the novel classes (12 classes), not the backbone" in table.notes[0]
    assert table.records[0]["interval95_classes"] in by_method.values()
    with pytest.raises(FewshotError, match="stored without the classes"):
        results_table([made()], interval="classes")
    with pytest.raises(FewshotError, match="did you mean 'classes'"):
        results_table(evaluated, interval="clases")


def test_seeds_are_a_table_of_their_own():
    results = [made(0.02 * s, weights=f"random:{s}", method=m) for s in range(3) for m in ("protonet", "pt_map")]
    table = seeds_table(results)
    means = [r.accuracy.mean for r in results if r.record.method == "pt_map"]
    row = table.cells[table.labels.index(("pt_map", "5-way 1-shot"))]
    assert row[0].mean == pytest.approx(np.mean(means)) and row[1].mean == pytest.approx(np.std(means, ddof=1))
    assert (row[2].mean, row[3].mean) == (min(means), max(means))
    assert "covers the training seed" in table.notes[0] and row[-1].mean == 3
    file = io.StringIO()
    table.print(Console(file=file, width=150))
    assert " 3 " in file.getvalue()
    with pytest.raises(FewshotError, match="pt_map, 5-way 1-shot: 1 result"):
        seeds_table([*results[:1], *results[2:4]])


def test_confusion_stays_with_the_result(evaluated):
    assert torch.equal(evaluated[0].measures["confusion"].sum(1) > 0, torch.ones(12, dtype=torch.bool))
