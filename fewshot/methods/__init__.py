"""One small file per method, found by its name, or among all: a new file registers itself when it is asked for."""

from fewshot.methods.contract import (
    METHODS,
    IterativeMethod,
    Method,
    Refinement,
    create_method,
    list_methods,
    method_parameters,
)

__all__ = ["METHODS", "IterativeMethod", "Method", "Refinement", "create_method", "list_methods", "method_parameters"]
