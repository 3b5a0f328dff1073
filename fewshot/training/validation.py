"""Accuracy on fixed episodes of the validation classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.seeding import isolated_rng
from fewshot.data.banks import ImageBank
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.features.extract import embed
from fewshot.training.checkpoint import StopRequest
from fewshot.training.config import LoopConfig
from fewshot.training.learner import Learner
from fewshot.training.logs import episode_picture
from fewshot.training.types import Scored

_CHUNK_IMAGES = 1024  # images of the episodes that are scored together
_CURVE_EPISODES, _CURVE_POINTS = 25, 11  # of the curve over inner steps


class Validation:
    """Scores weights with its own copy of the learner in evaluation mode, so that it cannot disturb the training."""

    def __init__(self, config: LoopConfig, bank: ImageBank | None, learner: Learner):
        if bank is None:
            raise FewshotError(f"validate_every={config.validate_every} but no validation bank; pass val_bank, or set "
                               "validate_every=0")
        if bank.split == "test":
            raise FewshotError("val_bank is the split 'test'; choosing weights on test classes makes test numbers "
                               "meaningless: pass the validation split")
        self.config, self.bank, self.learner = config, bank, copy.deepcopy(learner).eval()
        self.sampler = EpisodeSampler(bank, config.validation_ways, config.validation_shots, config.validation_queries,
                                      config.validation_seed, small_classes=config.small_classes)

    def score(self, weights: dict[str, Tensor], stop: StopRequest) -> Scored | None:
        """The validation of `weights`, a state dict with at least the names of the learner; None if asked to stop
        meanwhile."""
        self.learner.load_state_dict({name: weights[name] for name in self.learner.state_dict()})
        with torch.no_grad(), isolated_rng(self.config.validation_seed):
            correct = self._accuracies(stop)
            return None if correct is None else Scored(correct, self._picture(), self._inner_loop())

    def _accuracies(self, stop: StopRequest) -> Tensor | None:
        config, correct = self.config, []
        images = config.validation_ways * (config.validation_shots + config.validation_queries)
        # Where the features of an image do not depend on its episode, and the episodes would read more images than the
        # bank has, every image is embedded once.
        alone = self.learner.method.inputs == "features" and self.learner.backbone.batch_norm == "running"
        once = alone and images * config.validation_episodes > len(self.bank)
        bank = embed(self.bank, self.learner.backbone, progress=False) if once else self.bank
        score = self.learner.method if once else self.learner
        chunk = max(1, _CHUNK_IMAGES // images)
        for start in range(0, config.validation_episodes, chunk):
            if stop:
                return None
            count = min(chunk, config.validation_episodes - start)
            episodes, labels = self.sampler.sample(bank, start=start, count=count)
            predicted = score(episodes.to(self.learner.device)).argmax(-1).cpu()  # [E, Q]
            correct.append((predicted == labels).double().mean(1))
        return torch.cat(correct)

    def _picture(self) -> Tensor:
        episode, labels = self.sampler.sample(self.bank, start=0, count=1)
        predicted = self.learner(episode.to(self.learner.device)).argmax(-1).cpu()
        return episode_picture(episode.support[0], episode.support_labels[0], episode.query[0], labels[0], predicted[0],
                               episode.ways)

    def _inner_loop(self) -> dict[int, float]:
        method: Any = self.learner.method
        if not hasattr(method, "trajectory"):
            return {}
        at = sorted({round(method.steps * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)})
        count = min(_CURVE_EPISODES, self.config.validation_episodes)
        episodes, labels = self.sampler.sample(self.bank, start=0, count=count)
        logits = self.learner.trajectory(episodes.to(self.learner.device), set(at))  # [T, E, Q, N]
        accuracy = (logits.argmax(-1).cpu() == labels).double().mean((1, 2))
        return dict(zip(at, accuracy.tolist(), strict=True))
