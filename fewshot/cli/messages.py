"""Errors are written for both: `pass resume=False` in Python is `pass --no-resume` here."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

_REMEDY = re.compile(r"""\b(pass|give|set|use|choose|try|or|and) (\w+)=('[^']*'|"[^"]*"|\.\.\.|[+-]?\w+(?:\.\w+)*)""")
_ALIASES = {"root": "data_root", "base_bank": "base_features"}  # where Python calls it otherwise
_OF_DATA = ("on_error", "level", "splits", "split_seed", "image_column", "label_column", "split_column", "label_key",
            "images", "config", "class_names", "arguments")  # options of data sets that messages recommend


def as_options(message: str, app: Any, arguments: Sequence[str]) -> str:
    """`message` with the remedies that it names as options of the command in `arguments`; others stay as they are.

    app   the command of all commands; None where they are not loaded yet
    """
    command = app
    if command is None:
        return message
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    parameters = {parameter.name: parameter for parameter in command.params}

    def option(found: re.Match[str]) -> str:
        verb, name, value = found[1], found[2], found[3].strip("'\"")
        parameter = parameters.get(_ALIASES.get(name, name))
        if parameter is None:
            flag = _carrier(name, parameters)
            return found[0] if flag is None else f"{verb} {flag} {name}={value}"
        if value == "True" and parameter.is_flag:
            return f"{verb} {parameter.opts[0]}"
        if value == "False" and parameter.secondary_opts:
            return f"{verb} {parameter.secondary_opts[0]}"
        return f"{verb} {parameter.opts[0]} {value}"

    return _REMEDY.sub(option, message)


def _carrier(name: str, parameters: dict[str, Any]) -> str | None:
    """The option that takes NAME=VALUE for this name. What an error speaks of was loaded before it."""
    training, methods = sys.modules.get("fewshot.training.config"), sys.modules.get("fewshot.methods")
    if name in _OF_DATA and "data_options" in parameters:
        return parameters["data_options"].opts[0]
    configs = () if training is None else (training.TrainConfig, training.SupervisedConfig)
    if "config" in parameters and any(field.name == name for cls in configs for field in dataclasses.fields(cls)):
        return parameters["config"].opts[0]
    if "parameters" in parameters and methods is not None:
        from fewshot.methods.contract import METHODS, method_parameters

        if any(name in method_parameters(method) for method in METHODS):
            return parameters["parameters"].opts[0]
    return None
