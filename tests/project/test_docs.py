"""The documents say what is so: tables of the result files, methods of the registry, code that runs, commands that exist."""

from __future__ import annotations

import base64
import html
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

import fewshot
from fewshot.cli.app import app
from fewshot.methods import METHODS
from fewshot.training import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def program(path: str) -> ModuleType:
    """A Python file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language ("" for those without)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.S | re.M)
    return [text for name, text in found if name == language]


def python_of(path: Path) -> str:
    return "\n".join(blocks(path, "python"))


# -- what is made elsewhere --------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_result_files():
    update_readme = program("update_readme.py")
    for document in update_readme.DOCUMENTS:
        text = document.read_text("utf-8")
        assert "<!-- end -->" in text
        assert update_readme.filled(text) == text, f"{document.name}: run python docs/update_readme.py"
    assert README.read_text("utf-8").count(" ± ") > 30, "the table of the demo is missing"


def test_the_page_of_methods_is_that_of_the_registry():
    """What the registry says; agreement and speed are measured, and may be newer on their own pages."""
    update_methods = program("update_methods.py")
    page, entries = update_methods.PAGE.read_text("utf-8"), update_methods.entries()
    for entry in entries:
        below = page[page.index(f"## {entry.group}\n") :].split("\n## ")[0].splitlines()
        assert [line for line in below if line.startswith(entry.row)], f"{entry.name}: run python docs/update_methods.py"
    assert len(re.findall(r"^\| \[`", page, re.M)) == len(entries) > 40
    assert update_methods.agreement()["protonet"] == "< 1e-12" and "/s" in update_methods.speed()["protonet"]


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


# -- what a reader tries -----------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_its_first_lines_are_code():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 110
    start = lines.index("```python")
    assert lines.index("```", start) <= 40 and lines.index("```", start) - start - 1 == 5


def test_links_of_the_documents_lead_somewhere():
    links = [(document, target) for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
             for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", document.read_text("utf-8"))]
    assert len({document for document, _ in links}) >= 3, "README, CONTRIBUTING and pages of docs/ have links"
    for document, target in links:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


# In the quick suite what a newcomer reads first.
@pytest.mark.parametrize("path", [
    pytest.param(path, marks=() if path.stem in ("README", "first_evaluation", "own_method") else pytest.mark.slow)
    for path in PAGES if python_of(path) and path.stem != "learn2learn"], ids=lambda path: path.stem)
def test_python_of_a_page_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """As it stands, in an empty folder; what it registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    for registry in (METHODS, OBJECTIVES):
        list(registry)  # what is imported first by the page would be forgotten as well, and is imported once only
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    exec(compile(python_of(path), path.name, "exec"), {"__name__": "__main__"})


def test_learn2learn_page_runs(tmp_path, monkeypatch):
    """All its Python blocks, in one program."""
    pytest.importorskip("learn2learn", exc_type=ImportError, reason="needs learn2learn 0.2.0 (`make learn2learn`)")
    page = ROOT / "docs" / "learn2learn.md"
    assert len(blocks(page, "python")) == 4
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(python_of(page), "learn2learn.md", "exec"), found)
    assert found["result"].setting == "transductive" and found["result"].record.backbone == "omniglot_cnn"


def shell_lines(path: Path) -> list[str]:
    """Commands of the blocks without a language, continuations joined, comments removed."""
    text = "\n".join(blocks(path, "")).replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()) if line]


def test_commands_of_the_documents_exist():
    """Every `fewshot` command with every option, every target of make and every program named in a shell line."""
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    seen = 0
    for path in PAGES:
        for line in shell_lines(path):
            words = shlex.split(line)
            if "fewshot" in words[:1] or "-m fewshot" in line:
                check_command(path.name, words[words.index("fewshot") + 1 :])
                seen += 1
            elif words[0] == "make":
                assert targets.issuperset(words[1:]), (path.name, line)
            elif words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), (path.name, line)
    assert seen > 40


def check_command(where: str, words: list[str]) -> None:
    command = typer.main.get_command(app)
    everywhere = {option for parameter in command.params for option in parameter.opts}  # taken wherever they stand
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{where}: there is no command fewshot {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    known |= everywhere
    assert options <= known, f"{where}: fewshot {command.name} has no {', '.join(sorted(options - known))}"


# -- the site ----------------------------------------------------------------------------------------------------------


def test_docstrings_become_paragraphs_lists_and_formulas():
    pytest.importorskip("griffe", reason="needs the extra: pip install fewshot[docs]")
    made = program("site/docstrings.py").to_html(
        "One line\nand `embed` of [E, D] < 1.\n\nname    what it is:\n        \"a\": one\nlonger_name   other\n\n"
        "    x = 1\n      y")
    assert made == ('<div class="docstring"><p>One line and <autoref identifier="fewshot.embed" optional><code>embed</code>'
                    '</autoref> of [E, D] &lt; 1.</p><dl><dt>name</dt><dd>what it is:<br>"a": one</dd><dt>longer_name</dt>'
                    "<dd>other</dd></dl><pre><code>x = 1\n  y</code></pre></div>")


def bare(text: str) -> str:
    """Without the spaces and backquotes that laying out a docstring removes."""
    return re.sub(r"[\s`]", "", text)


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_holds_every_public_name(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra: pip install fewshot[docs]")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, timeout=280, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "index.html").read_text("utf-8")
    text = bare(html.unescape(re.sub(r"<[^>]*>", "", page)))
    for name in fewshot.__all__:
        assert f'id="fewshot.{name}"' in page, name
        assert bare(inspect.getdoc(getattr(fewshot, name))) in text, name
    methods = (tmp_path / "api" / "methods.html").read_text("utf-8")
    assert not [name for name, cls in METHODS._items.items() if cls.__module__.startswith("fewshot.methods.")
                and f'id="{cls.__module__}.{cls.__name__}"' not in methods]
    assert "fewshot eval</h2>" in re.sub(r"<a[^>]*>.*?</a>", "", (tmp_path / "commands.html").read_text("utf-8"))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (tmp_path / "notebooks" / f"{notebook.stem}.html").is_file()
    for built in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]*)|<link[^>]* href=\"(https?:[^\"]*)",
                            built.read_text("utf-8"))
        assert not loaded, (built.name, loaded)
