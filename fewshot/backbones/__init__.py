"""Networks from images to features, found by the name of their file, or among all: a new file registers itself."""

from fewshot.backbones.base import BACKBONES, Backbone
from fewshot.backbones.create import (
    backbone_table,
    check_backbone,
    create_backbone,
    default_options,
    input_for,
    list_backbones,
)
from fewshot.backbones.official import convert_official, load_official
from fewshot.backbones.transform import ImageTransform
from fewshot.backbones.weights import load_weights, read_weights, save_weights
from fewshot.backbones.wrapped import wrap_backbone

__all__ = ["BACKBONES", "Backbone", "ImageTransform", "backbone_table", "check_backbone", "convert_official",
           "create_backbone", "default_options", "input_for", "list_backbones", "load_official", "load_weights",
           "read_weights", "save_weights", "wrap_backbone"]
