"""Data sets as `ImageBank`s. Every module of this package is imported, so a new file registers itself."""

import importlib
import pkgutil

from fewshot.datasets.base import DATASETS, SPLITS, Dataset, dataset_table, instructions, kind_of, load_dataset
from fewshot.datasets.sheet import contact_sheet

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["DATASETS", "SPLITS", "Dataset", "contact_sheet", "dataset_table", "instructions", "kind_of",
           "load_dataset"]
