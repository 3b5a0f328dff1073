"""Episodic training: `train(TrainConfig(...), train_bank, val_bank, backbone, out=folder)`."""

from fewshot.training.checkpoint import TrainingInterrupted
from fewshot.training.config import TrainConfig
from fewshot.training.episodic import train
from fewshot.training.learner import Learner
from fewshot.training.record import TrainResult

__all__ = ["Learner", "TrainConfig", "TrainResult", "TrainingInterrupted", "train"]
