"""Tables: the numbers, the marks, and what must stand beside them."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import Result, compare
from fewshot.evaluation.run import Run
from fewshot.reporting.accuracy_tables import comparison_table, results_table
from fewshot.reporting.naming import distinct_labels
from fewshot.reporting.table import BEST, TIED

EPISODES = 400


def made(shift=0.0, noise_seed=None, noise=0.02, *, fingerprint="e", setting="inductive", assumes=(), notes=(),
         converged=None, commit="abc123", episodes=EPISODES, **run) -> Result:
    """A result whose episode difficulties are shared by all results: noise makes the differences vary."""
    difficulty = np.random.default_rng(0).normal(0.6, 0.1, episodes)
    own = np.random.default_rng(noise_seed).normal(0, noise, episodes) if noise_seed is not None else 0
    correct = torch.from_numpy(difficulty + shift + own)
    iterations = None if converged is None else torch.ones(episodes, dtype=torch.int64)
    found = {name: run.pop(name) for name in ("dataset", "data", "base", "weights", "episode_list") if name in run}
    return Result(record=Run(episodes=episodes, **run).record(**found), correct=correct, fingerprint=fingerprint,
                  seconds=1.0, setting=setting, assumes=assumes, notes=notes, commit=commit, versions={"torch": "2"},
                  converged=converged, iterations=iterations)


def test_untrained_weights_are_called_that():
    sha = "3f" * 32
    labels = distinct_labels([made(weights=sha), made(weights="random:0"), made(weights="random:4")])
    assert labels == ["protonet (weights 3f3f3f3f)", "protonet (untrained)", "protonet (untrained (seed 4))"]


def cell(table, label, column=0):
    return table.cells[[row[1] for row in table.labels].index(label)][column]


def test_a_cell_is_the_mean_and_the_student_t_half_width_in_percent():
    result = made()
    values = result.correct.numpy()
    half = stats.t.ppf(0.975, EPISODES - 1) * values.std(ddof=1) / np.sqrt(EPISODES)
    expected = f"{100 * values.mean():.2f} ± {100 * half:.2f}"
    table = results_table([result])
    assert expected in table.to_markdown()
    assert expected in re.sub("<.*?>", "", table._repr_html_())
    assert expected.replace("±", r"$\pm$") in table.to_latex()
    frame = table.to_dataframe()
    assert frame["accuracy_percent"].dtype == float and frame["half_width_percent"].dtype == float
    assert frame["accuracy_percent"][0] == pytest.approx(100 * values.mean())
    assert frame["half_width_percent"][0] == pytest.approx(100 * half)


def test_long_csv_has_one_row_a_result_with_all_fields_and_wide_csv_names_the_run_of_every_number():
    results = [made(shots=k, method=m) for k in (1, 5) for m in ("protonet", "pt_map")]
    table = results_table(results)
    long = pd.read_csv(io.StringIO(table.to_csv()))
    assert sorted(long["run"]) == sorted(r.record.key for r in results)
    by_key = {r.record.key: r for r in results}
    for _, row in long.iterrows():
        run = by_key[row["run"]].record
        assert (row["method"], row["shots"], row["queries"], row["seed"]) == (run.method, run.shots, 7, 0)
        assert json.loads(row["parameters"]) == run.parameters
        assert row["fingerprint"] == "e" and row["commit"] == "abc123"
    wide = pd.read_csv(io.StringIO(table.to_csv(wide=True)))
    assert len(wide) == 2
    for _, row in wide.iterrows():
        for k in (1, 5):
            run = by_key[row[f"5-way {k}-shot run"]].record
            assert (run.method, run.shots) == (row["method"], k)
    assert wide["5-way 1-shot accuracy_percent"].dtype == float


def test_only_a_best_result_with_all_paired_differences_off_zero_is_bold():
    # The plain intervals overlap by far (0.01 apart, half width 0.01); the paired ones do not.
    best, second = made(0.01, 1, method="pt_map"), made(0.0, 2, method="protonet")
    assert best.accuracy.low < second.accuracy.high
    table = results_table([second, best])
    assert (cell(table, "pt_map").mark, cell(table, "protonet").mark) == (BEST, "")
    assert table.to_markdown().count("**") == 2
    assert table.to_latex().count(r"\textbf") == 1
    assert "Bold: best of the column" in table.to_markdown() and "†" not in table.to_markdown()


def test_without_a_clear_best_everything_not_distinguishable_from_it_is_marked_and_nothing_is_bold():
    results = [made(0.05, 1, method="pt_map"), made(0.0499, 2, method="protonet"), made(0.0, 3, method="bd_cspn")]
    table = results_table(results)
    assert [cell(table, m).mark for m in ("pt_map", "protonet", "bd_cspn")] == [TIED, TIED, ""]
    text = table.to_markdown()
    assert "**" not in text and "†: not distinguishable" in text and "Bold" not in text


def test_a_best_result_tied_with_the_third_but_not_the_second_is_not_bold():
    results = [made(0.01, 1, 0.001, method="pt_map"), made(0.008, 2, 0.001, method="protonet"),
               made(0.0, 3, 0.3, method="bd_cspn")]
    assert compare(results[0], results[1]).significant and not compare(results[0], results[2]).significant
    table = results_table(results)
    best = max(results, key=lambda r: r.accuracy.mean).record.method
    assert BEST not in {c.mark for row in table.cells for c in row}
    assert cell(table, best).mark == TIED


def test_results_on_different_episodes_are_not_compared_and_the_table_says_so():
    table = results_table([made(0.2, method="pt_map", fingerprint="x"), made(method="protonet")])
    assert {c.mark for row in table.cells for c in row} == {""}
    assert any("5-way 1-shot: results are on different episodes" in note for note in table.notes)


@pytest.mark.parametrize(("setting", "values", "heading"), [
    ("parameters", ({"temperature": 1.0}, {"temperature": 2.0}), "parameters"), ("seed", (0, 1), "seed"),
    ("queries", (10, 15), "queries"), ("weights", ("a" * 64, "b" * 64), "weights"),
    ("transforms", ("", "l2"), "transforms"), ("dataset", ("glyphs", "other"), "dataset"),
    ("split", ("val", "test"), "split")])
def test_a_setting_that_tells_results_apart_becomes_a_heading(setting, values, heading):
    results = [made(0.1 * i, i, **{setting: value}) for i, value in enumerate(values)]
    table = results_table(results)
    assert heading in table.headings and len(table.labels) == 2 and len(table.records) == 2
    assert len(set(distinct_labels(results))) == 2


def test_columns_are_in_natural_order_and_can_be_any_setting():
    results = [made(shots=k, query_distribution=d) for k in (10, 5, 1) for d in ("dirichlet", "balanced")]
    assert results_table(results).columns == tuple(
        f"5-way {k}-shot{d}" for k in (1, 5, 10) for d in ("", ", Dirichlet(2)"))
    table = results_table(results, rows=["method"], columns=("shots",))
    assert table.columns == ("1", "5", "10") and "query distribution" in table.headings
    assert all(c is not None for row in table.cells for c in row)


def test_a_missing_combination_is_an_empty_cell_not_a_zero():
    table = results_table([made(shots=1), made(shots=5), made(shots=1, method="pt_map")])
    assert cell(table, "pt_map", 1) is None
    assert np.isnan(table.to_dataframe(wide=True)["5-way 5-shot accuracy_percent"][1])
    assert table.to_markdown().splitlines()[3].rstrip(" |").endswith("–")


def test_repetitions_are_dropped_and_contradictions_raise():
    assert len(results_table([made(), made()]).records) == 1
    with pytest.raises(FewshotError, match="two results of run .* differ"):
        results_table([made(), made(0.1)])
    with pytest.raises(FewshotError, match="no results"):
        results_table([])
    with pytest.raises(FewshotError, match="unknown table field 'bakbone'; did you mean 'backbone'"):
        results_table([made()], rows=("bakbone",))


def test_notes_carry_what_a_reader_must_know():
    stuck = torch.ones(EPISODES, dtype=torch.bool)
    stuck[:3] = False
    results = [made(method="protonet", backbone="conv4", split="val"),
               made(0.1, 1, method="pt_map", backbone="vit", split="val", setting="transductive", converged=stuck,
                    assumes=("balanced queries",), notes=("pre-trained on ImageNet-1k",), commit="def456+")]
    table = results_table(results)
    notes = "\n".join(table.notes)
    assert f"Student t over {EPISODES} episodes" in notes and "covers episode sampling, not" in notes
    assert "glyphs, split val" in notes and "Queries per class: 7." in notes and "Episode seed 0." in notes
    assert "Assuming balanced queries: pt_map." in notes
    assert "vit: pre-trained on ImageNet-1k." in notes
    assert f"vit pt_map, 5-way 1-shot: 3 of {EPISODES} episodes did not converge." in notes
    assert "Transductive, evaluated with balanced queries only: pt_map." in notes
    assert "Commit abc123, def456+ (+: with uncommitted changes)." in notes
    assert [label[table.headings.index("setting")] for label in table.labels] == ["inductive", "transductive"]
    uneven = made(0.1, 1, method="pt_map", query_distribution="dirichlet", setting="transductive")
    assert "balanced queries only" not in "\n".join(results_table([*results[1:], uneven]).notes)
    assert "Parameters other than the defaults: protonet: temperature=3." in "\n".join(
        results_table([made(parameters={"temperature": 3})]).notes)


def test_hostile_names_are_escaped_in_every_format():
    table = results_table([made(backbone="a|b_50%&<script>$x$", shots=k) for k in (1, 5)])
    row = table.to_markdown().splitlines()[2]
    assert row.count("|") - row.count(r"\|") == 6 and r"\<script\>" in row
    latex = table.to_latex()
    assert r"a|b\_50\%\&\textless{}script\textgreater{}\$x\$" in latex
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count("&") - body.count(r"\&") == 4 and latex.count("{") == latex.count("}")
    html = table._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_html_markdown_and_terminal_show_the_same_cells():
    table = results_table([made(0.01 * i, i, method=m, shots=k)
                           for i, m in enumerate(("protonet", "pt_map")) for k in (1, 5)])
    parser = _Cells()
    parser.feed(table.to_html())
    markdown = [[text.strip() for text in line.strip("|").split("|")] for line in table.to_markdown().splitlines()[:4]]
    plain = [[text.strip("*") for text in row] for row in markdown if not row[0].startswith("-")]
    assert parser.rows == plain
    file = io.StringIO()
    table.print(Console(file=file, width=200))
    for row in plain[1:]:
        assert all(text in file.getvalue() for text in row)
    assert "*: best of the column" in file.getvalue() and " *" in file.getvalue()


@pytest.mark.parametrize("width", [36, 50, 80, 200])
def test_no_terminal_is_too_narrow_for_the_numbers(width):
    table = results_table([made(shots=k, query_distribution=d) for k in (1, 5) for d in ("balanced", "dirichlet")])
    file = io.StringIO()
    table.print(Console(file=file, width=width))
    assert "…" not in file.getvalue() and max(map(len, file.getvalue().splitlines())) <= width
    assert file.getvalue().count(f" {made().accuracy.percent()} ") == 4


def test_differences_are_those_of_compare_and_antisymmetric():
    results = [made(0.0, 1, method="protonet"), made(0.05, 2, method="pt_map"), made(0.0499, 3, method="bd_cspn")]
    table = comparison_table(results)
    names = [label[0] for label in table.labels]
    assert names[-1] == "protonet" and list(table.columns) == names
    by_name = {r.record.method: r for r in results}
    for i, a in enumerate(names):
        assert table.cells[i][i] is None
        for j, b in enumerate(names):
            if i != j:
                found = compare(by_name[a], by_name[b])
                assert table.cells[i][j].mean == found.difference.mean == -table.cells[j][i].mean
                assert table.cells[i][j].half_width == found.difference.half_width
                assert (table.cells[i][j].mark == TIED) == (not found.significant)
    assert len(table.records) == 3 and {r["episodes"] for r in table.records} == {EPISODES}
    text = table.to_markdown()
    assert "+5." in text and "−5." in text and "paired episodes" in text
    assert "$-$5." in table.to_latex() and "−" not in table.to_latex()


def test_comparison_refuses_different_episodes_and_a_single_result():
    with pytest.raises(FewshotError, match="different episodes .*same data, protocol, seed"):
        comparison_table([made(), made(seed=1, fingerprint="other")])
    with pytest.raises(FewshotError, match="at least 2 results"):
        comparison_table([made(), made()])


def test_results_of_evaluate_make_a_table_and_a_matrix():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(30)
    features = torch.randn(8, 16, generator=generator)[labels] + 2 * torch.randn(240, 16, generator=generator)
    bank = FeatureBank(features.relu(), labels, name="synthetic", split="test")
    results = [evaluate(Run(method="protonet", transforms=t, shots=k, episodes=60), bank)
               for t in ("", "l2") for k in (1, 5)]
    table = results_table(results)
    assert table.columns == ("5-way 1-shot", "5-way 5-shot") and "transforms" in table.headings
    assert [r["run"] for r in table.records] == [results[i].record.key for i in (2, 3, 0, 1)]
    assert comparison_table(results[::2]).cells[0][1].mean >= 0
