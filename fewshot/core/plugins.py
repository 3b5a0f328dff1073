"""Methods, backbones, data sets and protocols of others: installed packages that announce themselves, and files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from fewshot.core.errors import FewshotError

GROUP = "fewshot"  # entry points of this group name modules that register something when they are imported
FILES = "FEWSHOT_LOAD"  # environment variable with paths of files: processes that are started here know them, too


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import the modules that installed packages name as entry points of GROUP, and the files in FILES; their names. Once a
    process. Raises FewshotError for one that cannot be imported."""
    import importlib.metadata  # takes longer than what else the help of a command needs of this module

    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise FewshotError(f"the entry point {entry.name} = {entry.value} of an installed package cannot be imported "
                               f"({type(error).__name__}: {error}); mend or uninstall that package") from error
        found.append(entry.name)
    for path in filter(None, os.environ.get(FILES, "").split(os.pathsep)):
        load_file(path)
        found.append(path)
    return tuple(found)


def load_file(path: str | Path) -> None:
    """Run a Python file that registers methods, backbones, data sets or protocols; a file that was run is not run again.
    Raises FewshotError where it is missing or fails."""
    path = Path(path).expanduser().resolve()
    name = f"fewshot_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"  # other processes find its classes by it
    if name in sys.modules:
        return
    if not path.is_file():
        raise FewshotError(f"no Python file at {path} to load")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FewshotError(f"{path} is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, FewshotError):
            raise
        raise FewshotError(f"loading {path} failed ({type(error).__name__}: {error})") from error
    files = [text for text in os.environ.get(FILES, "").split(os.pathsep) if text]
    if str(path) not in files:
        os.environ[FILES] = os.pathsep.join([*files, str(path)])
