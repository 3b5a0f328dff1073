"""What is chosen on validation episodes: the softmax temperature that calibrates a method, and its decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import frozen_dict
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.decisions import COVERAGE, KEEP, Decisions, check_coverage, fewest_shots, left_out, score_of
from fewshot.evaluation.resolve import ready, resolve
from fewshot.evaluation.run import Run
from fewshot.evaluation.work import Work, source_taken_from
from fewshot.methods.contract import Method
from fewshot.statistics.conformal import conformal_threshold

if TYPE_CHECKING:
    from fewshot.features.source import FeatureSource

EPISODES = 500  # of the validation classes
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers of a method on episodes: logits [E, Q, N], labels [E, Q], and where the support was asked about itself
    (`left_out`), logits [E, L, N] and labels [E, L] of that."""

    logits: Tensor
    labels: Tensor
    left_out: tuple[Tensor, Tensor] | None = None


def validation_answers(run: Run, bank: FeatureBank | ImageBank, method: Method, prepare: Callable[[Episodes], Episodes],
                       device: torch.device, of_support: bool = False) -> Answered:
    """`answered` on EPISODES episodes of the validation classes, `bank`; raises FewshotError for one of another split."""
    if bank.split != "val":
        raise FewshotError(f"the bank for calibration holds split {bank.split!r} of {bank.name}; temperatures and "
                           "thresholds are chosen on validation classes (split 'val'), never on those that are evaluated")
    return answered(run.changed(episodes=EPISODES), bank, method, prepare, device, of_support)


def answered(run: Run, bank: FeatureBank | ImageBank, method: Method, prepare: Callable[[Episodes], Episodes],
             device: torch.device, of_support: bool = False) -> Answered:
    """Answers on the episodes of `run` drawn from `bank`, without open queries.

    prepare   Episodes -> Episodes, the transforms of the run;  of_support   ask about the support, too, where every class
    has 2 examples at least
    """
    sampler = run.changed(open_classes=0, open_queries=0).sampler(bank)
    chunks = [sampler.indices(start, min(_CHUNK, run.episodes - start)) for start in range(0, run.episodes, _CHUNK)]
    asked: list[tuple[Tensor, Tensor]] = []

    def prepared() -> Iterator[Episodes]:
        for chunk in chunks:
            episodes = prepare(chunk.gather(bank).to(device))
            if of_support and fewest_shots(episodes) > 1:
                logits, labels = zip(*left_out(method, episodes), strict=True)
                asked.append((torch.cat(logits, 1), torch.cat(labels, 1)))
            yield episodes

    with torch.inference_mode():
        logits = torch.cat([found.cpu() for found, _ in answers(method, prepared())])
    support = (torch.cat([x for x, _ in asked]), torch.cat([y for _, y in asked])) if asked else None
    return Answered(logits, torch.cat([chunk.query_labels for chunk in chunks]), support)


def decisions_from(found: Answered, coverage: float = COVERAGE, keep: float = KEEP,
                   chosen_on: Mapping[str, Any] | None = None) -> Decisions:
    """Temperature, then the threshold on the scores it gives, then the one for "unknown".

    Where the support was asked about itself, the threshold follows its difficulty: the slope is that of the least squares
    line through the `coverage`-quantile of the scores of each episode, at least 0, and the threshold is conformal for the
    scores less slope * difficulty. Classes that are harder than the validation classes then get larger sets, without a
    look at their queries. (Fisch et al. 2021 learn the quantile from the support by a network; this is its linear case.)

    Raises FewshotError where the queries are too few for the rates, and as `fit_temperature`.
    """
    temperature = fit_temperature(found.logits, found.labels)
    scores, slope = score_of(found.logits, found.labels, temperature), 0.0
    if found.left_out is not None:
        hard = score_of(*found.left_out, temperature).mean(1)
        quantile, away = scores.quantile(coverage, dim=1), hard - hard.mean()
        spread = float((away**2).sum())
        slope = max(float((away * quantile).sum()) / spread, 0.0) if spread > 0 else 0.0
        scores = scores - slope * hard[:, None]
    limits = [conformal_threshold(values.flatten().numpy(), share)
              for values, share in ((scores, coverage), (-found.logits.double().amax(-1), keep))]
    if not all(map(math.isfinite, limits)):
        raise FewshotError(f"{scores.numel()} validation queries are too few for coverage={coverage} and keep={keep}; ask "
                           "for lower rates")
    return Decisions(coverage, limits[0], slope, temperature, keep, -limits[1], frozen_dict(chosen_on or {}))


def choose_decisions(run: Run, bank: FeatureBank | None = None, base_bank: FeatureBank | None = None, *,
                     coverage: float = COVERAGE, keep: float = KEEP, source: FeatureSource | None = None,
                     work: Work | None = None, **settings: Any) -> Decisions:
    """Choose on 500 validation episodes in the protocol of `run` what `fewshot.Decisions` holds.

    run        its split is "val" and its episodes are 500, whatever it says
    bank       features of the validation classes (split "val"); without it the data set is loaded and embedded
    coverage   the rate at which sets are to hold the true class;  keep  at least this share of queries of the episode's
               classes is not to be called unknown
    source, work, settings   as for `evaluate`

    Raises FewshotError for a bank of another split, for rates outside (0, 1), and as `fit_temperature`.
    """
    check_coverage(coverage)
    check_coverage(keep, "keep")
    work = Work.taken_from(settings, work)
    source = source_taken_from(settings, work, source)
    resolved = resolve(run.changed(**{**settings, "split": "val", "episodes": EPISODES}), bank, base_bank, source=source)
    device = own_device(work.device)
    method, prepare, transductive = ready(resolved, device)
    found = validation_answers(resolved.run, resolved.bank, method, prepare, device, can_adapt(method, transductive))
    return decisions_from(found, coverage, keep, resolved.record.to_dict())


def can_adapt(method: Method, transductive: bool) -> bool:
    """Whether thresholds may follow the support: a transductive answer to a few examples says little of one to all queries,
    and a method on images would be adapted anew for each fold."""
    return not transductive and method.inputs == "features"


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
