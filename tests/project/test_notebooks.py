"""Notebooks run from top to bottom, import public names, define nothing but methods, and hold no outputs."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[str]:
    """The code without IPython's `%` lines."""
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ("".join(cell["source"]) for cell in cells)
    return ["\n".join(line for line in source.splitlines() if not line.startswith("%")) for source in sources]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:1], ids=lambda path: path.stem)  # the others, in kernels, with the slow suite
def test_runs_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    """In an empty folder, cell after cell in one namespace, as IPython does: what a cell ends with is shown, so it must be
    a picture, a figure or a table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    namespace, shown = {"__name__": "__main__"}, []
    for number, source in enumerate(code_cells(path)):
        place = f"{path.name}, code cell {number}"
        *body, last = ast.parse(source, place).body
        is_expression = isinstance(last, ast.Expr)
        exec(compile(ast.Module(body if is_expression else [*body, last], []), place, "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), place, "eval"), namespace) if is_expression else None
        if value is not None:
            assert any(hasattr(value, name) for name in ("_repr_html_", "_repr_png_", "savefig")), (place, type(value))
            shown.append(type(value).__name__)
    assert shown and capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a notebook leaves no files behind"


@every_notebook
def test_imports_public_names_and_defines_nothing_but_methods(path):
    tree = ast.parse("\n".join(code_cells(path)))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert all("METHODS.register" in ast.unparse(node.decorator_list[0]) for node in classes)
    of_methods = {id(node) for made in classes for node in ast.walk(made)}
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
                and id(node) not in of_methods]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "fewshot":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert not alias.name.startswith("_") and hasattr(module, alias.name)
                assert node.module != "fewshot" or alias.name in module.__all__


@every_notebook
def test_is_stored_without_outputs(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None
               for cell in notebook["cells"] if cell["cell_type"] == "code")


@every_notebook
def test_ends_with_a_question_and_links_that_lead_somewhere(path):
    texts = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]
             if cell["cell_type"] == "markdown"]
    assert "## A question to explore" in texts[-1] and "?" in texts[-1]
    for target in re.findall(r"\]\(([^)#:]+)\)", "\n".join(texts)):
        assert (FOLDER / target).exists(), target


@pytest.mark.slow
@every_notebook
def test_runs_in_a_kernel(path, tmp_path):
    """As a user runs it, with the packages of the extra `notebooks`."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra: pip install fewshot[notebooks]")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra: pip install fewshot[notebooks]")
    pytest.importorskip("ipykernel", reason="needs the extra: pip install fewshot[notebooks]")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    done = nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook shows pictures"
    assert not list(tmp_path.iterdir()), "a notebook leaves no files behind"
