"""Training: `train(TrainConfig(...), train_bank, val_bank, backbone, out=folder)` on episodes, `train_supervised` with a
`SupervisedConfig` on the classes (`recipe_config(name)` has the settings of a paper), `meta_train` for any module and
loss."""

from fewshot.training import recipes
from fewshot.training.checkpoint import TrainingInterrupted
from fewshot.training.config import SupervisedConfig, TrainConfig
from fewshot.training.episodic import train
from fewshot.training.generations import train_generations
from fewshot.training.learner import Learner
from fewshot.training.meta import meta_train
from fewshot.training.objectives import OBJECTIVES, Objective, recipe_config
from fewshot.training.record import TrainResult
from fewshot.training.supervised import train_supervised

__all__ = ["OBJECTIVES", "Learner", "Objective", "SupervisedConfig", "TrainConfig", "TrainResult", "TrainingInterrupted",
           "meta_train", "recipe_config", "recipes", "train", "train_generations", "train_supervised"]
