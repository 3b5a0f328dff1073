"""`import fewshot` is quick and every public name is what it says, whatever was imported before."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fewshot


@pytest.mark.parametrize("name", fewshot.__all__)
def test_every_public_name_is_there(name):
    assert not isinstance(getattr(fewshot, name), ModuleType) and name in dir(fewshot)


def test_rooms_have_other_names_than_functions():
    # Loading a room makes it an attribute of the package, which must not hide a function.
    rooms = {room.name for room in pkgutil.iter_modules(fewshot.__path__)}
    assert rooms and not rooms & set(fewshot.__all__)


def test_type_checkers_see_the_same_names():
    block = next(node for node in ast.parse(Path(fewshot.__file__).read_text("utf-8")).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == fewshot._HOMES


def test_importing_loads_nothing_heavy():
    """Nor does the module for learn2learn need it."""
    program = ("import sys, fewshot; assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules); "
               "import fewshot.integrations.learn2learn; assert 'learn2learn' not in sys.modules; "
               "fewshot.FewshotError; from fewshot import *; print(evaluate.__name__, embed.__name__)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["evaluate", "embed"], done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="evaluat"):
        fewshot.evaluat  # noqa: B018
