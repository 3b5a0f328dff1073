"""What is measured on every episode beside its accuracy, from logits and query labels."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from fewshot.errors import FewshotError

BINS = 15  # of the confidence, as in Guo et al. 2017


def class_counts(predicted: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Per episode: the bank's classes, the queries of each class and how many of them are right, each [E, N].

    predicted, labels [E, Q] (a label of -1 is no class of the episode), classes [E, N]
    """
    known = labels >= 0
    place = labels.clamp(min=0)
    empty = torch.zeros(classes.shape, dtype=torch.int32)
    total = empty.scatter_add(1, place, known.int())
    right = empty.scatter_add(1, place, (predicted == labels).int())
    return {"classes": classes.int(), "class_correct": right, "class_total": total}


def probability_measures(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Proper scores and the calibration histogram of softmax(logits / temperature).

    nll          [E] mean of -log p(label)
    brier        [E] mean of sum_n (p_n - [n = label])^2, between 0 and 2 (Brier 1950)
    calibration  [E, 3 BINS] per bin ((m-1)/BINS, m/BINS] of the confidence max_n p_n: the number of queries, how many of
                 them are right, and the sum of their confidences

    logits [E, Q, N], labels [E, Q]; a label of -1 is left out of all of them.
    """
    log_p = torch.log_softmax(logits / temperature if temperature != 1 else logits, -1)
    known = (labels >= 0).to(log_p.dtype)
    each = known.sum(1)
    of_label = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    p = log_p.exp()
    confidence, predicted = p.max(-1)
    brier = (p * p).sum(-1) - 2 * of_label.exp() + 1
    which = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    rows = torch.zeros(len(logits), 3 * BINS, dtype=log_p.dtype)
    right = (predicted == labels).to(log_p.dtype)
    for part, weight in enumerate((known, right, known * confidence)):
        rows.scatter_add_(1, which + part * BINS, weight)
    return {"nll": (-(of_label * known).sum(1) / each).double(), "brier": ((brier * known).sum(1) / each).double(),
            "calibration": rows}


def macro_accuracy(correct: Tensor, total: Tensor) -> Tensor:
    """[E] mean over the classes that have queries of the share of right ones, from counts [E, N]."""
    present = total > 0
    return (correct / total.clamp(min=1)).double().mul(present).sum(1) / present.sum(1)


def calibration_error(histogram: Tensor) -> float:
    """Expected calibration error: sum over bins of (n_m / n) |accuracy_m - confidence_m|, from counts [3, BINS] (Guo et
    al. 2017, equation 3; Naeini et al. 2015)."""
    count, right, confidence = histogram.double()
    return float((right - confidence).abs().sum() / count.sum())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the mean of -log softmax(logits / T)[label] (Guo et al. 2017, section 4.2).

    logits [..., N], labels [...]. Searched on log T between -10 and 10, where the loss of the inverse temperature is convex;
    raises FewshotError where no finite temperature is best (every prediction right, or no better than chance).
    """
    logits, labels = logits.reshape(-1, logits.shape[-1]).double(), labels.reshape(-1)

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / np.exp(log_t), labels))

    found = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-6})
    if abs(found.x) > 9.99:
        raise FewshotError(f"no temperature between e^-10 and e^10 is best on {len(labels)} validation queries: their "
                           "predictions are all right or no better than chance; use more or harder validation episodes")
    return float(np.exp(found.x))


class Measures:
    """Collects the measures of one evaluation, chunk by chunk; `totals` is what is summed over episodes."""

    def __init__(self, temperature: float | None = None):
        self._temperature = temperature
        self.totals: dict[str, Tensor] = {}

    def __call__(self, logits: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Arrays [E, ...] of these episodes."""
        found = class_counts(logits.argmax(-1), labels, classes)
        found |= self._scores(logits, labels, 1.0, "")
        if self._temperature is not None:
            found |= self._scores(logits, labels, self._temperature, "_calibrated")
        return found

    def _scores(self, logits: Tensor, labels: Tensor, temperature: float, ending: str) -> dict[str, Tensor]:
        found = probability_measures(logits, labels, temperature)
        rows = found.pop("calibration").double().sum(0).view(3, BINS)
        self.totals[f"calibration{ending}"] = self.totals.get(f"calibration{ending}", 0) + rows
        return {name + ending: values for name, values in found.items()}
