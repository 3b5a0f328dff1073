"""Few-shot learning research: the public names. They are loaded when first used, so that `import fewshot` is quick."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers, editors and the documentation; a test compares both lists
    from fewshot.backbones import convert_official, create_backbone, list_backbones, load_official, wrap_backbone
    from fewshot.backbones.known_classes import KnownClasses
    from fewshot.backbones.two_towers import encode_texts
    from fewshot.contract.check_method import check_method
    from fewshot.core.errors import FewshotError
    from fewshot.data.banks import FeatureBank, ImageBank
    from fewshot.data.class_texts import ClassTexts
    from fewshot.datasets import contact_sheet, load_dataset
    from fewshot.episodes.imported import import_episodes
    from fewshot.episodes.sampler import EpisodeSampler
    from fewshot.episodes.types import Episodes
    from fewshot.evaluation.calibration import choose_decisions
    from fewshot.evaluation.decisions import Decisions
    from fewshot.evaluation.evaluate import evaluate
    from fewshot.evaluation.result import Result, compare
    from fewshot.evaluation.run import Run
    from fewshot.evaluation.store import Store
    from fewshot.features.class_prompts import class_texts, class_words
    from fewshot.features.extract import embed
    from fewshot.features.name_tower import NameTower, name_tower
    from fewshot.integrations.scikit_learn import FewShotClassifier
    from fewshot.labelling.classifier import Classifier
    from fewshot.labelling.export import export_onnx
    from fewshot.labelling.predict import predict_folder
    from fewshot.methods import create_method, list_methods
    from fewshot.methods.bases.grid_search import search_grid
    from fewshot.ops.adapt import Adapted, adapt, adapt_implicitly
    from fewshot.reporting.accuracy_tables import results_table
    from fewshot.reporting.page import write_report
    from fewshot.training import SupervisedConfig, TrainConfig, meta_train, train, train_supervised
    from fewshot.tuning.search import fit_run, tune
    from fewshot.tuning.unrolled import fit_method

_HOMES = {name: f"fewshot.{home}" for home, names in {
    "backbones.known_classes": ("KnownClasses",),
    "backbones.two_towers": ("encode_texts",),
    "backbones": ("convert_official", "create_backbone", "list_backbones", "load_official", "wrap_backbone"),
    "contract.check_method": ("check_method",),
    "core.errors": ("FewshotError",),
    "data.banks": ("FeatureBank", "ImageBank"),
    "data.class_texts": ("ClassTexts",),
    "datasets": ("contact_sheet", "load_dataset"),
    "episodes.imported": ("import_episodes",),
    "episodes.sampler": ("EpisodeSampler",),
    "episodes.types": ("Episodes",),
    "evaluation.calibration": ("choose_decisions",),
    "evaluation.decisions": ("Decisions",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.result": ("Result", "compare"),
    "evaluation.run": ("Run",),
    "evaluation.store": ("Store",),
    "features.class_prompts": ("class_texts", "class_words"),
    "features.extract": ("embed",),
    "features.name_tower": ("NameTower", "name_tower"),
    "integrations.scikit_learn": ("FewShotClassifier",),
    "labelling.export": ("export_onnx",),
    "labelling.classifier": ("Classifier",),
    "labelling.predict": ("predict_folder",),
    "methods": ("create_method", "list_methods"),
    "ops.adapt": ("Adapted", "adapt", "adapt_implicitly"),
    "reporting.accuracy_tables": ("results_table",),
    "reporting.page": ("write_report",),
    "training": ("SupervisedConfig", "TrainConfig", "meta_train", "train", "train_supervised"),
    "methods.bases.grid_search": ("search_grid",),
    "tuning.search": ("fit_run", "tune"),
    "tuning.unrolled": ("fit_method",),
}.items() for name in names}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
