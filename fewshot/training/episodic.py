"""Episodic training: a step minimises the mean loss of a batch of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot.backbones.base import Backbone
from fewshot.data.banks import ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import Method
from fewshot.training.config import TrainConfig
from fewshot.training.learner import Learner, make_learner
from fewshot.training.loop import check_banks, run_training
from fewshot.training.record import TrainResult


@dataclass(frozen=True, eq=False)
class EpisodeTask:
    """Step t uses the episodes t E .. (t+1) E - 1 of the sampler, pass p an equal part of them."""

    config: TrainConfig
    train_bank: ImageBank
    val_bank: ImageBank | None
    sampler: EpisodeSampler
    learner: Learner

    interval = 1
    unit = "episodes"

    @property
    def items(self) -> float:
        return self.config.episodes_per_step

    @property
    def scorer(self) -> Learner:
        return self.learner

    def part(self, step: int, number: int) -> tuple[Episodes, Tensor, float]:
        episodes = self._episodes(step, number)
        drawn = self.sampler.sample(self.train_bank, start=episodes.start, count=len(episodes))
        return *drawn, 1 / self.config.accumulate

    def loss(self, step: int, number: int, inputs: Episodes, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.learner.loss(inputs, labels, torch.tensor(self._episodes(step, number)))

    def _episodes(self, step: int, number: int) -> range:
        """Their numbers in the run."""
        count = self.config.episodes_per_step // self.config.accumulate
        start = step * self.config.episodes_per_step + number * count
        return range(start, start + count)


def train(config: TrainConfig, train_bank: ImageBank, val_bank: ImageBank | None, backbone: Backbone, *,
          method: Method | None = None, out: str | Path, progress: bool = True, resume: bool = True) -> TrainResult:
    """Minimise the mean of config.loss over episodes of `train_bank`; keep the weights best on `val_bank`.

    config     settings, see TrainConfig
    backbone   the initial weights; it is copied, not changed. Its device is used. What `torch.compile` returns is trained
               compiled (without it where a method holds the network itself, as maml does) and stored under its own names
    method     an instance to use instead of config.method with config.parameters, for methods whose constructor needs
               more than plain values. The weights of an nn.Module are trained, too
    out        folder: checkpoints/, tensorboard/, history.csv and .json, result.json and, last, weights.safetensors (of
               the backbone, and of the method where it has its own), whose presence marks a finished run
    resume     continue what is in `out`, or return at once if it is finished; False deletes it and starts again

    Step t uses the episodes t E .. (t+1) E - 1 of the sampler, so a resumed run sees the same data. On the CPU, with
    the same number of threads, an interrupted and resumed run ends in bit-identical weights; on CUDA, as far as the
    kernels are deterministic. The global generators of random numbers are left as they were.

    Processes started by torchrun share the passes of every step (see docs/training.md); the result is that of one
    process with the same settings.

    Raises FewshotError for wrong settings, for a folder that holds another run, and for a loss or gradient that is not
    finite; TrainingInterrupted after SIGINT or SIGTERM, once the state is saved.
    """
    check_banks(train_bank, val_bank)
    learner = make_learner(config, backbone, method)
    sampler = EpisodeSampler(train_bank, config.ways, config.shots, config.queries, config.seed,
                             small_classes=config.small_classes)
    return run_training(EpisodeTask(config, train_bank, val_bank, sampler, learner), out, progress, resume)
