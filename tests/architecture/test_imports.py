"""No circle of imports, a root of the package that holds rooms only, and no function that wants too much."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fewshot
from tests.architecture.imports import circle, import_graph

PACKAGE = Path(fewshot.__file__).parent


def test_no_modules_import_each_other_in_a_circle():
    graph = import_graph(PACKAGE)
    assert len(graph) > 150 and any(len(targets) > 5 for targets in graph.values())
    assert circle(graph) is None


@pytest.mark.parametrize("back", ["from toy.a import x", "def f():\n    import toy.a", "from .. import a",
                                  "if TYPE_CHECKING:\n    from toy import a"])
def test_a_circle_is_found_wherever_its_import_stands(tmp_path, back):
    toy = tmp_path / "toy"
    (toy / "room").mkdir(parents=True)
    for path, text in {"__init__.py": "", "room/__init__.py": "", "a.py": "from toy.room.b import y", "room/b.py": back,
                       "c.py": "import toy.a"}.items():
        (toy / path).write_text(text + "\n")
    found = circle(import_graph(toy))
    assert found is not None and {"toy.a", "toy.room.b"} == set(found)
    (toy / "room/b.py").write_text("import torch\n")
    assert circle(import_graph(toy)) is None


def test_the_root_holds_rooms_and_nothing_else():
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    assert len(rooms) <= 18
    for room in rooms:
        text = (PACKAGE / room / "__init__.py").read_text("utf-8")
        assert text.startswith('"""') and len(text.split('"""')[1]) > 20, f"{room}/__init__.py does not say what lives there"


def test_no_function_has_more_than_twelve_parameters():
    counts = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
                counts[path.relative_to(PACKAGE), node.name] = len([name for name in names if name not in ("self", "cls")])
    assert len(counts) > 1000 and max(counts.values()) <= 12, [where for where, count in counts.items() if count > 12]
