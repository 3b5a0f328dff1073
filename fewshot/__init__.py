"""Few-shot learning research: the public names. They are loaded when first used, so that `import fewshot` is quick."""

import importlib
import sys
from types import ModuleType

_HOMES = {
    "load_dataset": "fewshot.datasets", "contact_sheet": "fewshot.datasets",
    "create_backbone": "fewshot.backbones", "list_backbones": "fewshot.backbones",
    "load_official": "fewshot.backbones", "convert_official": "fewshot.backbones",
    "create_method": "fewshot.methods", "list_methods": "fewshot.methods", "check_method": "fewshot.check",
    "Episodes": "fewshot.episodes", "EpisodeSampler": "fewshot.sampler",
    "ImageBank": "fewshot.banks", "FeatureBank": "fewshot.banks", "embed": "fewshot.embed",
    "Run": "fewshot.run", "Result": "fewshot.evaluate", "evaluate": "fewshot.evaluate", "compare": "fewshot.evaluate",
    "Store": "fewshot.store", "train": "fewshot.training", "TrainConfig": "fewshot.training",
    "train_supervised": "fewshot.training", "SupervisedConfig": "fewshot.training",
    "tune": "fewshot.tune", "fit_run": "fewshot.tune", "fit_method": "fewshot.fit", "FewshotError": "fewshot.errors",
    "results_table": "fewshot.tables", "write_report": "fewshot.report",
    "predict_folder": "fewshot.predict", "FewShotClassifier": "fewshot.classifier",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the submodule fewshot.evaluate, which others do, must not hide the public function of that name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
