"""The softmax temperature that calibrates a method, fitted on validation episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.run import Run
from fewshot.methods.contract import Method

EPISODES = 500  # of the validation classes
_CHUNK = 16


def validation_temperature(run: Run, bank: FeatureBank | ImageBank, method: Method,
                           prepare: Callable[[Episodes], Episodes], device: torch.device) -> float:
    """Fit the temperature of `method` on EPISODES episodes of `bank`, the validation classes, in the protocol of `run`.

    prepare  Episodes -> Episodes, the transforms of the run. Raises FewshotError for a bank of another split.
    """
    if bank.split != "val":
        raise FewshotError(f"the bank for calibration holds split {bank.split!r} of {bank.name}; a temperature is fitted on "
                           "validation classes (split 'val'), never on those that are evaluated")
    sampler = run.changed(open_classes=0, open_queries=0).sampler(bank)
    chunks = [sampler.indices(start, min(_CHUNK, EPISODES - start)) for start in range(0, EPISODES, _CHUNK)]
    with torch.inference_mode():
        logits = [found.cpu() for found, _ in answers(method, (prepare(chunk.gather(bank).to(device)) for chunk in chunks))]
    return fit_temperature(torch.cat(logits), torch.cat([chunk.query_labels for chunk in chunks]))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the mean of -log softmax(logits / T)[label] (Guo et al. 2017, section 4.2).

    logits [..., N], labels [...]. Searched on log T between -10 and 10, where the loss of the inverse temperature is convex;
    raises FewshotError where no finite temperature is best (every prediction right, or no better than chance).
    """
    from scipy.optimize import minimize_scalar

    logits, labels = logits.reshape(-1, logits.shape[-1]).double(), labels.reshape(-1)

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / np.exp(log_t), labels))

    found = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-6})
    if abs(found.x) > 9.99:
        raise FewshotError(f"no temperature between e^-10 and e^10 is best on {len(labels)} validation queries: their "
                           "predictions are all right or no better than chance; use more or harder validation episodes")
    return float(np.exp(found.x))
