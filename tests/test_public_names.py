"""`import fewshot` is quick and every public name is what it says, whatever was imported before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import fewshot


@pytest.mark.parametrize("name", fewshot.__all__)
def test_every_public_name_is_there(name):
    assert not isinstance(getattr(fewshot, name), ModuleType) and name in dir(fewshot)


def test_submodules_do_not_hide_functions_of_their_name():
    for name in ("evaluate", "embed"):
        module = importlib.import_module(f"fewshot.{name}")
        setattr(fewshot, name, module)  # what the import system does after loading fewshot/<name>.py
        assert callable(getattr(fewshot, name)) and getattr(module, name) is getattr(fewshot, name)


def test_importing_loads_nothing_heavy():
    program = ("import sys, fewshot; assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules); "
               "fewshot.FewshotError; from fewshot import *; print(evaluate.__name__, embed.__name__)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["evaluate", "embed"], done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="evaluat"):
        fewshot.evaluat  # noqa: B018
