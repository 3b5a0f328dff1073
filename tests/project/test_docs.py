"""The README says what the committed result files say."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_readme_tables_are_those_of_the_result_files():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "update_readme.py")
    update_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_readme)
    text = (ROOT / "README.md").read_text()
    assert update_readme.filled(text) == text, "run python docs/update_readme.py"
    assert text.count(" ± ") > 50, "the result tables are missing"


def test_results_hold_no_path_of_the_machine_that_made_them():
    files = sorted((ROOT / "experiments" / "results").glob("*"))
    assert files and not [path.name for path in files if re.search(r"/\S*/experiments/", path.read_text())]
    page = re.sub(r"base64,[^\"]*", "", (ROOT / "docs" / "report.html").read_text())
    assert not re.search(r"/(tmp|home|root|Users|work|mnt)/|[A-Z]:\\\\", page)


def test_the_committed_report_is_that_of_the_committed_results():
    page = (ROOT / "docs" / "report.html").read_text()
    assert len(page) < 1_500_000 and (ROOT / "docs" / "images" / "report.png").stat().st_size < 300_000
    held = base64.b64decode(re.search(r'data:text/csv;charset=utf-8;base64,([^"]*)', page)[1]).decode()
    assert held == (ROOT / "experiments" / "results" / "demo.csv").read_text(), "run make demo, then python " \
        "docs/update_readme.py --demo runs/demo"


def test_links_of_the_documents_lead_somewhere():
    links = [(document, target) for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
             for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())]
    assert len({document for document, _ in links}) >= 3, "README, CONTRIBUTING and pages of docs/ have links"
    for document, target in links:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_readme_example_runs():
    """The first Python block, with fewer episodes."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    exec(compile(code.replace("episodes=2000", "episodes=200"), "README.md", "exec"), {})


def test_learn2learn_page_runs(tmp_path, monkeypatch):
    """All its Python blocks, in one program."""
    pytest.importorskip("learn2learn", exc_type=ImportError, reason="needs learn2learn 0.2.0 (`make learn2learn`)")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "learn2learn.md").read_text(), re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile("\n".join(blocks), "learn2learn.md", "exec"), found)
    assert found["result"].setting == "transductive" and found["result"].run.backbone == "omniglot_cnn"
