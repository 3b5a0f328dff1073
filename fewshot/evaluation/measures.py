"""What is measured on every episode beside its accuracy, from logits and query labels."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot.evaluation.decisions import Decisions
from fewshot.ops.class_reductions import best_class
from fewshot.statistics import mean_interval

BINS = 15  # of the confidence, as in Guo et al. 2017
_FIXED = 2**24  # sums over episodes are integers, multiples of 1/_FIXED: they do not depend on the order of summation
_ROWS = 1 << 16  # episodes at a time, so that a million of them need no large arrays in between


def class_counts(predicted: Tensor, labels: Tensor, classes: Tensor, pool: int) -> dict[str, Tensor]:
    """Per episode: the bank's classes, the queries of each class and how many of them are right, each [E, N].

    predicted, labels [E, Q] (a label of -1 is no class of the episode), classes [E, N] below `pool`. In int16 where that
    holds them: a million episodes have as many rows.
    """
    known = labels >= 0
    place = labels.clamp(min=0)
    empty = torch.zeros(classes.shape, dtype=_narrow(labels.shape[1]))
    total = empty.scatter_add(1, place, known.to(empty.dtype))
    right = empty.scatter_add(1, place, (predicted == labels).to(empty.dtype))
    return {"classes": classes.to(_narrow(pool)), "class_correct": right, "class_total": total}


def _narrow(largest: int) -> torch.dtype:
    return torch.int16 if largest < 2**15 else torch.int32 if largest < 2**31 else torch.int64


def probability_measures(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Proper scores and the calibration histogram of softmax(logits / temperature).

    nll          [E] mean of -log p(label)
    brier        [E] mean of sum_n (p_n - [n = label])^2, between 0 and 2 (Brier 1950)
    calibration  [E, 3 BINS] per bin ((m-1)/BINS, m/BINS] of the confidence max_n p_n: the number of queries, how many of
                 them are right, and the sum of their confidences

    logits [E, Q, N], labels [E, Q]; a label of -1 is left out of all of them. In float64, whatever the logits are.
    """
    log_p = torch.log_softmax(logits.double() / temperature, -1)
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
    return {"nll": -(of_label * known).sum(1) / each, "brier": (brier * known).sum(1) / each, "calibration": rows}


def macro_accuracy(correct: Tensor, total: Tensor) -> Tensor:
    """[E] float64 mean over the classes that have queries of the share of right ones, from counts [E, N]."""
    found = []
    for right, each in zip(correct.split(_ROWS), total.split(_ROWS), strict=True):
        # Shares of the largest class: where all classes have as many queries the sum is an integer, and the result is the
        # accuracy to the last bit.
        largest = each.amax(1, keepdim=True).double()
        found.append((right * (largest / each.clamp(min=1))).sum(1) / (largest[:, 0] * (each > 0).sum(1)))
    return torch.cat(found)


def calibration_error(histogram: Tensor) -> float:
    """Expected calibration error: sum over bins of (n_m / n) |accuracy_m - confidence_m|, from counts [3, BINS] (Guo et
    al. 2017, equation 3; Naeini et al. 2015)."""
    count, right, confidence = histogram.double()
    return float((right - confidence).abs().sum() / count.sum())


def summary_of(measures: dict[str, Tensor]) -> dict[str, float]:
    """Means over episodes and totals as single numbers, of what was measured."""
    found = {}
    if "class_total" in measures:
        found["macro_accuracy"] = mean_interval(macro_accuracy(measures["class_correct"], measures["class_total"])).mean
    for name, values in measures.items():
        if name.startswith("calibration"):
            found[name.replace("calibration", "calibration_error", 1)] = calibration_error(values)
        elif values.is_floating_point():
            found[name] = float(values.mean())
    return found


def open_set_measures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How well queries of classes outside the episode (label -1, "open") are told from the others, each [E].

    Two scores of being known: `probability` max_n softmax(logits)_n, and `logit` max_n logits_n (minus the distance to the
    nearest prototype for metric methods). For both

    auroc      chance that a known query scores above an open one, ties half
    aupr       average precision of finding the open queries from low scores, as scikit-learn's average_precision_score
    accepted   share of right answers among the queries kept when as many of the lowest score are rejected as there are
               open ones (a kept open query is wrong): every method rejects equally many

    Queries are sorted by their score, so that memory follows their number, and counted: the results are exact.
    """
    known, right, found = labels >= 0, logits.argmax(-1) == labels, {}
    opened, total = (~known).sum(1), known.sum(1)
    kept = torch.arange(labels.shape[1]) >= opened[:, None]
    for name, score in (("logit", logits.amax(-1)), ("probability", logits.double().softmax(-1).amax(-1))):
        score, order = score.sort(dim=1, stable=True)
        is_open = ~known.gather(1, order)
        below, at_most = (torch.searchsorted(score, score, right=right_end) for right_end in (False, True))  # [E, Q] queries
        counted = torch.nn.functional.pad(is_open.cumsum(1), (1, 0))  # [E, Q+1] open ones among so many of the lowest
        open_below, open_at_most = counted.gather(1, below), counted.gather(1, at_most)
        twice_above = 2 * total[:, None] - (at_most - open_at_most) - (below - open_below)  # known ones above, ties half
        found[f"auroc_{name}"] = (twice_above * is_open).sum(1).double() / (2 * opened * total)
        found[f"aupr_{name}"] = (open_at_most.double() / at_most * is_open).sum(1) / opened
        found[f"accepted_{name}"] = (right.gather(1, order) & kept).sum(1, dtype=torch.float64) / kept.sum(1)
    return found


def decision_measures(decisions: Decisions, logits: Tensor, labels: Tensor,
                      difficulty: Tensor | None = None) -> dict[str, Tensor]:
    """What the decisions are worth, each [E]: `coverage`, the share of queries whose set holds the true class, `set_size`,
    the mean number of classes in a set, `known_kept`, the share of queries not called unknown; of queries with label -1,
    where there are any, `open_found`, the share called unknown. The others are of queries with a label alone."""
    sets, unknown, known = decisions.sets(logits, difficulty), decisions.unknown(logits), labels >= 0
    holds = sets.gather(-1, labels.clamp(min=0)[..., None])[..., 0]

    def mean(values: Tensor, of: Tensor) -> Tensor:
        return (values * of).sum(1, dtype=torch.float64) / of.sum(1)

    found = {"coverage": mean(holds, known), "set_size": mean(sets.sum(-1), known),
             "known_kept": mean(~unknown, known)}
    return found if known.all() else found | {"open_found": mean(unknown, ~known)}


class Measures:
    """Measures the episodes of a unit, chunk by chunk; `totals` is what is summed over episodes, as integers.

    classes       [C] ids of the bank's classes, ascending, with holes or without
    scores        measure probabilities, too: nll and brier [E], and the totals calibration [3, BINS] and confusion [C, C]
                  over `classes` (row: true, column: predicted)
    temperature   with scores: measure softmax(logits / temperature), too, under names that end in _calibrated
    decisions     measure what these are worth, too
    """

    def __init__(self, classes: Tensor, scores: bool = False, temperature: float | None = None,
                 decisions: Decisions | None = None):
        self._decisions = decisions
        self._endings = {"": 1.0} if scores else {}
        if temperature is not None:
            self._endings["_calibrated"] = temperature
        self._classes, self._pool = classes, int(classes.max()) + 1
        shape = len(classes), len(classes)
        self.totals: dict[str, Tensor] = {"confusion": torch.zeros(shape, dtype=torch.int64)} if scores else {}

    def __call__(self, logits: Tensor, labels: Tensor, classes: Tensor,
                 difficulty: Tensor | None = None) -> dict[str, Tensor]:
        """Arrays [E, ...] of these episodes: logits [E, Q, N], labels [E, Q] with -1 for queries of no class of the
        episode, classes [E, N], difficulty [E] where the decisions need it."""
        predicted, known = best_class(logits.transpose(1, 2)), labels >= 0
        right = (predicted == labels).sum(1, dtype=torch.float64)
        found = {"correct": right / known.sum(1), **class_counts(predicted, labels, classes, self._pool)}
        if self._endings:
            true, named = (torch.searchsorted(self._classes, classes.gather(1, x.clamp(min=0))[known])
                           for x in (labels, predicted))
            confusion = self.totals["confusion"]
            confusion.view(-1).index_add_(0, true * len(confusion) + named, torch.ones_like(true))
        for ending, temperature in self._endings.items():
            scores = probability_measures(logits, labels, temperature)
            rows = scores.pop("calibration").double().mul(_FIXED).round().long().sum(0).view(3, BINS)
            self.totals[f"calibration{ending}"] = self.totals.get(f"calibration{ending}", 0) + rows
            found |= {name + ending: values for name, values in scores.items()}
        if not known.all():
            found |= open_set_measures(logits, labels)
        if self._decisions is not None:
            found |= decision_measures(self._decisions, logits, labels, difficulty)
        return found


def finished(totals: dict[str, Tensor], classes: Tensor) -> dict[str, Tensor]:
    """Sums of `Measures.totals` as results hold them: confusion int64 with the ids of its rows, calibration float64."""
    ids = {"confusion_classes": classes} if "confusion" in totals else {}
    return ids | {name: values.double() / _FIXED if name.startswith("calibration") else values
                  for name, values in totals.items()}
