"""Networks from images to features. Every module of this package is imported, so a new file registers itself."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from fewshot.backbones.base import BACKBONES, Backbone  # noqa: E402
from fewshot.backbones.create import (  # noqa: E402
    backbone_table,
    check_backbone,
    create_backbone,
    default_options,
    input_for,
    list_backbones,
)
from fewshot.backbones.official import convert_official, load_official  # noqa: E402
from fewshot.backbones.transform import ImageTransform  # noqa: E402
from fewshot.backbones.weights import load_weights, read_weights, save_weights  # noqa: E402
from fewshot.backbones.wrapped import wrap_backbone  # noqa: E402

__all__ = ["BACKBONES", "Backbone", "ImageTransform", "backbone_table", "check_backbone", "convert_official",
           "create_backbone", "default_options", "input_for", "list_backbones", "load_official", "load_weights",
           "read_weights", "save_weights", "wrap_backbone"]
