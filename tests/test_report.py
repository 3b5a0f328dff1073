"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from fewshot.errors import FewshotError
from fewshot.figures import save_figure
from fewshot.report import write_report
from tests.test_tables import made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
    accuracy, *matrices, runs, versions = page.tables
    assert accuracy[0] == ["backbone", "method", "setting", "5-way 1-shot", "5-way 5-shot"]
    cells = {row[1]: row[3:] for row in accuracy[1:]}
    for result in found:
        assert result.accuracy.percent() in cells[result.run.method][(1, 5).index(result.run.shots)]
    assert len(matrices) == 2 and all(len(m) == 4 and all(len(row) == 4 for row in m) for m in matrices)
    assert matrices[0][1][:2] == [matrices[0][0][1], "–"]
    assert sorted(row[0] for row in runs[1:]) == sorted(r.run.key for r in found)
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")
def test_a_browser_loads_it_without_complaint_and_sorts(report, tmp_path):
    # A copy of the page drives itself: it clicks two headings and writes down the order of the rows after each click.
    probe = """<script>addEventListener("load", () => {
      const table = document.querySelector("table.sortable"), heads = table.tHead.rows[0].cells;
      const order = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent).join(" ");
      const state = [[...document.images].filter(i => i.complete && i.naturalWidth > 1).length];
      for (const column of [3, 3, 1]) {
        heads[column].querySelector("button").click();
        state.push(order() + " " + heads[column].getAttribute("aria-sort"));
      }
      state.push(document.documentElement.scrollWidth <= innerWidth);
      document.body.dataset.state = state.join(";");
    });</script></head>"""
    copy = tmp_path / "probe.html"
    copy.write_text(report.read_text().replace("</head>", probe))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=500,800", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    state = re.search(r'data-state="([^"]*)"', done.stdout)
    assert state, done.stderr[-2000:]
    by_mean = [r.run.method for r in sorted(results(), key=lambda r: -r.accuracy.mean) if r.run.shots == 1]
    assert state[1].split(";") == ["3", " ".join(by_mean) + " descending", " ".join(by_mean[::-1]) + " ascending",
                                   "bd_cspn protonet pt_map ascending", "true"]
