"""The imports of a package as a graph, read from its source: nothing is run, so that none is missed for its condition."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def import_graph(folder: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it names in an import, wherever that stands: at the top, inside
    functions and under TYPE_CHECKING. `folder` is that of the package."""
    files = {_module(path.relative_to(folder.parent)): path for path in folder.rglob("*.py")}
    return {name: {target for target in _imported(path, name) if target in files} - {name} for name, path in files.items()}


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle, first and last the same; None where there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, name: str) -> set[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # A name may be a module or something in the package: both count, and what is no module falls out.
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found
