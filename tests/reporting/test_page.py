"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from fewshot.cli.eval_text import eval_command
from fewshot.cli.main import main
from fewshot.core.errors import FewshotError
from fewshot.datasets import load_dataset
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.measures import calibration_error
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.features.source import FeatureSource
from fewshot.reporting.accuracy_figures import save_figure
from fewshot.reporting.measure_figures import (
    LARGEST,
    calibration_figure,
    confused_pairs,
    confusion_figure,
    drawn_episodes,
    sweeps,
)
from fewshot.reporting.page import write_report
from tests.browser import browse, needs_browser
from tests.reporting.test_tables import made

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes, table rows as text, and whether every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def results():
    methods = [("protonet", "inductive", ()), ("pt_map", "transductive", ("balanced queries",)),
               ("bd_cspn", "transductive", ())]
    return [made(0.01 * i, i, method=m, shots=k, fingerprint=f"fingerprint-{k}", setting=s, assumes=a)
            for i, (m, s, a) in enumerate(methods) for k in (1, 5)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    png, _ = save_figure(Figure(figsize=(3, 2)), folder / "curve")
    return write_report(folder / "out" / "report.html", title="A <b>title</b> & more", results=results(),
                        figures={"curve": (png, "A caption with \"quotes\" & <i>tags</i>."),
                                 "drawn": (Figure(figsize=(2, 2)), "Second.")},
                        text="First <script>alert(1)</script>.\n\nSecond.",
                        commands=["fewshot eval --set 'a<b' && true"])


def test_the_page_needs_nothing_from_outside(report):
    text = report.read_text()
    page = Page(text)
    assert page.open == []
    images = page.all("img")
    assert len(images) == 3
    for image in images:
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
        assert image["alt"] and int(image["width"]) > 0
    links = ("src", "href", "srcset", "action", "data", "poster")
    references = [value for _, attrs in page.tags for name, value in attrs.items() if name in links]
    assert all(value.startswith("data:") for value in references)
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(page.all("script")) == 1 and "src" not in page.all("script")[0]
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert [p.name for p in report.parent.iterdir()] == ["report.html"]


def test_everything_from_outside_is_escaped(report):
    page = Page(report.read_text())
    for text in ("A <b>title</b> & more", "First <script>alert(1)</script>.", 'A caption with "quotes" & <i>tags</i>.',
                 "fewshot eval --set 'a<b' && true"):
        assert text in page.words
    assert page.all("b") == page.all("i") == []
    assert page.all("img")[1]["alt"] == 'curve: A caption with "quotes" & <i>tags</i>.'


def test_tables_hold_the_numbers_and_what_they_rest_on(report):
    found = results()
    page = Page(report.read_text())
    accuracy, *compared, runs, versions = page.tables
    matrices, pairs, ranks = compared[::3], compared[1::3], compared[2::3]
    assert accuracy[0] == ["backbone", "method", "setting", "5-way 1-shot", "5-way 5-shot"]
    cells = {row[1]: row[3:] for row in accuracy[1:]}
    for result in found:
        assert result.accuracy.percent() in cells[result.record.method][(1, 5).index(result.record.shots)]
    assert len(matrices) == 2 and all(len(m) == 4 and all(len(row) == 4 for row in m) for m in matrices)
    assert matrices[0][1][:2] == [matrices[0][0][1], "–"]
    assert all(p[0] == ["first", "second", "difference", "over classes", "P(better)", "p", "p (Holm)"] for p in pairs)
    assert [len(p) for p in pairs] == [4, 4] and [r[0] for r in ranks] == [["method", "mean rank", "mean accuracy"]] * 2
    assert sorted(row[0] for row in runs[1:]) == sorted(r.record.key for r in found)
    assert {(row[3], row[4], row[5], row[7]) for row in runs[1:]} == {("400", "0", "fingerprint-"[:12], "abc123")}
    titles = {attrs["title"] for tag, attrs in page.tags if tag == "span" and "title" in attrs}
    assert {"fingerprint-1", "fingerprint-5"} <= titles
    assert versions[1:] == [["torch", "2"]]
    assert "Assuming balanced queries: pt_map." in page.words and "covers episode sampling" in page.words
    csv = next(a["href"] for a in page.all("a") if a.get("download"))
    assert base64.b64decode(csv.split(",")[1]).decode().count("\n") == len(found) + 1


def test_a_single_result_needs_no_matrix_and_no_figures(tmp_path):
    page = Page(write_report(tmp_path / "r.html", title="t", results=[made()]).read_text())
    assert "Paired differences" not in page.words and "Commands" not in page.words
    assert len(page.all("img")) == 1


def test_wrong_input_leaves_no_file(tmp_path):
    path = tmp_path / "r.html"
    with pytest.raises(FewshotError, match="no results"):
        write_report(path, title="t", results=[])
    with pytest.raises(FewshotError, match="figure 'x' cannot be read"):
        write_report(path, title="t", results=[made()], figures={"x": (tmp_path / "absent.png", "")})
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    with pytest.raises(FewshotError, match="is not a PNG file"):
        write_report(path, title="t", results=[made()], figures={"x": (tmp_path / "x.png", "")})
    assert not path.exists()


@needs_browser
def test_a_browser_loads_it_without_complaint_and_sorts(report, tmp_path):
    # A copy of the page drives itself: it clicks two headings and writes down the order of the rows after each click.
    state = browse(report.read_text(), """
      const table = document.querySelector("table.sortable"), heads = table.tHead.rows[0].cells;
      const order = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent).join(" ");
      state.push([...document.images].filter(i => i.complete && i.naturalWidth > 1).length);
      for (const column of [3, 3, 1]) {
        heads[column].querySelector("button").click();
        state.push(order() + " " + heads[column].getAttribute("aria-sort"));
      }""", tmp_path)
    by_mean = [r.record.method for r in sorted(results(), key=lambda r: -r.accuracy.mean) if r.record.shots == 1]
    assert state == ["3", " ".join(by_mean) + " descending", " ".join(by_mean[::-1]) + " ascending",
                                   "bd_cspn protonet pt_map ascending", "true"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(folder, source, result) of a stored evaluation of glyphs with metrics."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(folder / "data"))
        source = FeatureSource(cache=folder / "runs" / "cache")
        run = Run(backbone="pixels", method="protonet", shots=1, queries=3, episodes=60, parameters={"temperature": 2.0})
        yield folder, source, evaluate(run, source=source, store=Store(folder / "runs"), metrics=True)


@pytest.mark.slow
def test_measures_and_episodes_are_on_the_page(measured):
    folder, source, result = measured
    page = Page(write_report(folder / "r.html", title="t", results=[result], source=source).read_text())
    alts = [image["alt"] for image in page.all("img")]
    assert [alt.split(":")[0].split(" of ")[0] for alt in alts] == ["accuracy", "calibration", "confusion",
                                                                  "hardest episode", "random episode"]
    names = source.images(Run.from_record(result.record).subject).class_names
    first = confused_pairs(result.measures["confusion"], names)[0]
    assert first in page.words and any(first.startswith(f"{name} taken for") for name in names)
    worst = result.correct.min().item()
    assert f"number {int(result.correct.argmin())} of 60: {100 * worst:.1f} % of 15 queries" in page.words


@pytest.mark.slow
def test_without_images_the_page_says_why(measured, tmp_path):
    folder, source, result = measured
    elsewhere = dataclasses.replace(result, record=result.record.changed(data="0" * 64))
    page = Page(write_report(tmp_path / "r.html", title="t", results=[elsewhere], source=source).read_text())
    assert "Not drawn: the images of glyphs found here are not those evaluated" in page.words
    assert "Classes have numbers" in page.words
    assert confused_pairs(result.measures["confusion"])[0] in page.words
    assert len(page.all("img")) == 3
    for change, message in (({"weights": "f" * 64}, "its weights .ffffffffffff. are not at hand"),
                            ({"episode_list": "e" * 64}, "episodes came from a file"),
                            ({"dataset": "mine"}, "mine is no data set")):
        with pytest.raises(FewshotError, match=message):
            drawn_episodes(dataclasses.replace(result, record=result.record.changed(**change)), source)
    with pytest.raises(FewshotError, match="draws other episodes"):
        drawn_episodes(dataclasses.replace(result, fingerprint="0" * 64), source)


def test_drawn_episodes_are_those_evaluated(measured):
    """The title of the figure counts the right answers given again; it must agree with the stored accuracy."""
    _, source, result = measured
    for (_, figure, caption), i in zip(drawn_episodes(result, source), (int(result.correct.argmin()),
                                                                       int(result.record.key, 16) % 60), strict=True):
        right = round(15 * float(result.correct[i]))
        assert any(f"{right} of 15 correct" in text.get_text() for text in figure.texts) and "rounding" not in caption


def test_the_command_gives_the_same_result_again(measured):
    folder, _, result = measured
    words = shlex.split(eval_command(result))
    assert words[:2] == ["fewshot", "eval"]
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--runs", str(folder / "again")])
    assert not stop.value.code
    again = list(Store(folder / "again"))
    assert [r.record.key for r in again] == [result.record.key] and again[0].correct.equal(result.correct)
    assert again[0].fingerprint == result.fingerprint and again[0].measures.keys() == result.measures.keys()


@pytest.mark.parametrize("settings", [
    {}, {"shots": 5, "ways": 10, "queries": 3, "episodes": 77, "seed": 4, "split": "val"},
    {"query_distribution": "dirichlet", "alpha": 0.7, "method": "pt_map"},
    {"query_distribution": "k_eff", "k_eff": 3, "transforms": "power(0.5),l2"},
    {"open_classes": 2, "open_queries": 3, "weights": "random"},
    {"dataset": "cub", "data_options": {"protocol": "it's", "n": 2}, "backbone": "resnet12"},
    {"method": "unem_gaussian"}, {"parameters": {"temperature": 0.125}}])
def test_the_command_parses_back_into_the_run(settings, monkeypatch):
    class Seen(Exception):
        pass

    def stop(run, *arguments, **options):
        raise Seen(run)

    monkeypatch.setattr(sys.modules["fewshot.evaluation.evaluate"], "evaluate", stop)  # fewshot.evaluate is the function
    # What is said and checked of the images before the work needs them, and not all are here.
    monkeypatch.setattr("fewshot.evaluation.resolve.check_images", lambda *_: None)
    monkeypatch.setattr(FeatureSource, "images", lambda *_: load_dataset("glyphs", "test"))
    run = Run(**settings)
    stored = run.record(weights={"random": "random:0"}.get(run.weights, run.weights))
    with pytest.raises(Seen) as seen:
        main(shlex.split(eval_command(dataclasses.replace(made(), record=stored)))[1:])
    assert seen.value.args[0] == run


def test_what_a_result_does_not_know_is_named_above_its_command(tmp_path):
    file = tmp_path / "w.safetensors"
    trained = dataclasses.replace(made(), record=Run(weights="a" * 64).record())
    remark, command = eval_command(trained).split("\n")
    assert remark == f"# WEIGHTS: the weights file with the identity {'a' * 64}" and "--weights WEIGHTS" in command
    assert f"--weights {file}" in eval_command(trained, weights={"a" * 64: file})
    embedded = eval_command(made(dataset="mine", data="d" * 64))
    assert "--features FEATURES" in embedded and "--dataset" not in embedded and "d" * 64 in embedded
    listed = eval_command(made(episode_list="e" * 64))
    assert "--episode-file EPISODES" in listed and "--shots" not in listed


def test_sweeps_are_drawn_where_they_are():
    assert sweeps([made(), made(0.1, 1, method="pt_map")]) == {}
    assert list(sweeps([made(shots=k) for k in (1, 5)])) == ["shots"]
    both = sweeps([made(ways=n, queries=q) for n in (5, 10) for q in (5, 15)])
    assert list(both) == ["ways", "queries"]
    alphas = [made(query_distribution="dirichlet", alpha=a) for a in (0.5, 2.0)]
    assert list(sweeps([*alphas, made()])) == ["alpha"], "balanced results have no place on this axis"


def test_a_confusion_matrix_has_rows_that_sum_to_one_and_names_the_worst():
    counts = torch.tensor([[8, 2, 0], [0, 10, 0], [5, 1, 14]])
    drawn = confusion_figure(counts, ["a", "b", "c"]).axes[0]
    np.testing.assert_allclose(drawn.images[0].get_array(), counts / counts.sum(1, keepdim=True), rtol=1e-6)
    assert [t.get_text() for t in drawn.get_xticklabels()] == ["a", "b", "c"]
    assert confused_pairs(counts, ["a", "b", "c"], 2) == ["c taken for a (25.0 % of 20 queries)",
                                                         "a taken for b (20.0 % of 10 queries)"]
    assert confused_pairs(torch.eye(3) * 4) == []
    many = 100 * torch.eye(50, dtype=torch.int64)
    many[49, 0] = 30
    many[7] = 0  # without queries
    drawn = confusion_figure(many).axes[0]
    labels = [t.get_text() for t in drawn.get_yticklabels()]
    assert len(labels) == LARGEST and "class 49" in labels and "class 7" not in labels
    with pytest.raises(FewshotError, match="2 class names"):
        confusion_figure(counts, ["a", "b"])
    with pytest.raises(FewshotError, match="without queries"):
        confusion_figure(0 * counts)


def test_a_calibration_curve_shows_the_bins_and_the_error():
    histogram = torch.zeros(3, 15, dtype=torch.float64)
    histogram[:, 14], histogram[:, 6] = torch.tensor([10, 8, 9.7]), torch.tensor([4, 2, 1.8])
    figure = calibration_figure({"as answered": histogram, "calibrated": histogram})
    top = figure.axes[0]
    x, y = top.lines[1].get_data()
    np.testing.assert_allclose((x, y), ((0.45, 0.97), (0.5, 0.8)))
    assert len(figure.axes) == 4
    assert f"ECE {100 * calibration_error(histogram):.2f} %, n = 14" in top.get_title(loc="left")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("dataset", "backbone", "weights"), [
    ("omniglot", "conv4", "conv4_omniglot_background.safetensors"), ("caltech101", "pixels", None)])
def test_a_report_over_real_images_loads_with_every_picture(dataset, backbone, weights, shared_data, tmp_path):
    """Metrics, a sweep, open queries, episodes and the feature space, without a word on the console."""
    source = FeatureSource(root=shared_data, cache=tmp_path / "cache")
    file = None if weights is None else Path(__file__).parents[2] / "experiments" / "weights" / weights
    run = Run(dataset=dataset, backbone=backbone, weights=file and str(file), queries=5, episodes=30, shots=1)
    found = [evaluate(run, source=source, method=method, shots=shots, metrics=True)
             for method in ("protonet", "soft_kmeans") for shots in (1, 5)]
    found.append(evaluate(run, source=source, method="soft_kmeans", open_classes=2, open_queries=3, metrics=True))
    known = {found[0].record.weights: file} if file else {}
    page = write_report(tmp_path / "r.html", title=dataset, results=found, figures=sweeps(found), source=source,
                        weights=known)
    text = page.read_text()
    alts = [image["alt"].split(":")[0] for image in Page(text).all("img")]
    for name in ("accuracy", "hardest episode", "feature space before and after", "way of the prototypes", "random episode",
                 "shots"):
        assert name in alts
    assert sum(alt.startswith("confusion") for alt in alts) == 5 and "Not drawn" not in text and len(text) < 6_000_000
    state = browse(text, "state.push([...document.images].filter(i => i.complete && i.naturalWidth > 1).length);", tmp_path)
    assert state == [str(len(alts)), "true"]
