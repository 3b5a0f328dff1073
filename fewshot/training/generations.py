"""Born-again networks: the same recipe several times, each with the network before as its teacher."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

from fewshot.backbones import Backbone
from fewshot.core.checked import check_integer
from fewshot.core.errors import FewshotError
from fewshot.data.banks import ImageBank
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES
from fewshot.training.record import TrainResult
from fewshot.training.supervised import train_supervised


def train_generations(config: SupervisedConfig, train_bank: ImageBank, val_bank: ImageBank | None, backbone: Backbone, *,
                      out: str | Path, generations: int, progress: bool = True, resume: bool = True) -> TrainResult:
    """Train `generations` networks from the same initial weights, each after the first with the weights of the one before
    as the recipe's `teacher`, and return the last, which is in `out`; those before are in `out`/generation_1, _2, ...

    One generation of the recipe "rfs" is RFS-simple, two are RFS-distill. What is finished is found again. Raises
    FewshotError for a recipe without a teacher.
    """
    if "teacher" not in inspect.signature(OBJECTIVES[config.recipe]).parameters:
        raise FewshotError(f"recipe {config.recipe} has no teacher; train generations with recipe rfs")
    generations = check_integer("generations", generations, 1)
    for generation in range(1, generations + 1):
        folder = Path(out) if generation == generations else Path(out) / f"generation_{generation}"
        result = train_supervised(config, train_bank, val_bank, backbone, out=folder, progress=progress, resume=resume)
        parameters = {**config.recipe_parameters, "teacher": str(result.weights)}
        config = dataclasses.replace(config, recipe_parameters=parameters)
    return result
