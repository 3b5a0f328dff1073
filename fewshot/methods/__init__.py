"""One small file per method. Every module of this package is imported, so a new file registers itself."""

import importlib
import pkgutil

from fewshot.methods.contract import (
    METHODS,
    IterativeMethod,
    Method,
    Refinement,
    create_method,
    list_methods,
    method_parameters,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "IterativeMethod", "Method", "Refinement", "create_method", "list_methods", "method_parameters"]
