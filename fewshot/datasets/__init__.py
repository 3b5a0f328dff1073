"""Data sets as `ImageBank`s, found by the name of their file, or among all: a new file registers itself."""

from fewshot.datasets.base import DATASETS, SPLITS, Dataset, dataset_table, instructions, kind_of, load_dataset
from fewshot.datasets.sheet import contact_sheet

__all__ = ["DATASETS", "SPLITS", "Dataset", "contact_sheet", "dataset_table", "instructions", "kind_of",
           "load_dataset"]
