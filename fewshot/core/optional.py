"""Libraries that need not be installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fewshot.core.errors import FewshotError


def needed(module: str, purpose: str, extra: str = "sources") -> Any:
    """The module of an optional library, or FewshotError that says how to install it: `purpose` is what needs it, `extra`
    what brings it."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise FewshotError(f"{purpose}: the package {package} is missing; pip install 'fewshot[{extra}]'")
    return importlib.import_module(module)
