"""`evaluate(run) -> Result`: accuracy of one method on the episodes of a run."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.team import own_device
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.protocol import BaseToNewProtocol
from fewshot.episodes.saved import EpisodeList
from fewshot.evaluation.base_to_new import BaseToNewScorer
from fewshot.evaluation.calibration import can_adapt, decisions_from, fit_temperature, validation_answers
from fewshot.evaluation.collect import Rows, collect
from fewshot.evaluation.decisions import check_coverage
from fewshot.evaluation.measures import finished
from fewshot.evaluation.progress import Parts
from fewshot.evaluation.record import Record
from fewshot.evaluation.resolve import Resolved, check_images, ready, resolve
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run, of_list
from fewshot.evaluation.scorer import Scorer
from fewshot.evaluation.work import Work, source_taken_from
from fewshot.methods.contract import Method

if TYPE_CHECKING:
    from fewshot.evaluation.store import Store
    from fewshot.features.source import FeatureSource


SCORERS: dict[str, type[Scorer]] = {BaseToNewProtocol.name: BaseToNewScorer}


def evaluate(run: Run | Record | None = None, bank: FeatureBank | ImageBank | None = None, *,
             base_bank: FeatureBank | None = None, method: str | Method | None = None,
             episodes_file: str | Path | None = None, metrics: bool = False, calibrate: bool | FeatureBank = False,
             notes: tuple[str, ...] = (), store: Store | None = None, source: FeatureSource | None = None,
             work: Work | None = None, **settings: Any) -> Result | None:
    """Accuracy of one method on the episodes of `run`.

    run         the request, or give its settings as keywords: `evaluate(dataset="glyphs", shots=5)`; a record is repeated
    bank        features of the split (images, for a trained learner on images given as `method`); without it the data set
                is loaded, and embedded where the method takes features
    base_bank   features of the base classes, for methods and transforms that need their statistics
    method      a name, as any other setting of the run; or an instance to use instead of creating `run.method`
    episodes_file   episodes saved by `EpisodeList.save`, instead of drawing them; they set the protocol of the run
    metrics     measure probabilities, too: negative log-likelihood, Brier score, calibration error, confusion matrix
    calibrate   also measure them with a temperature fitted on validation episodes: True for the validation classes of the
                run's data set, or their bank
    notes       further warnings that tables must carry, for a bank given; those on what the backbone has seen are found
    store       where finished results are kept: a run that is there is returned, not repeated
    source      a `FeatureSource` shared by many runs, so that each image and feature is loaded once; or give `root` (folder
                of the data sets) and `cache` (of features) as keywords
    work        how it is done; or give as keywords `workers`, `shard`, `device` and `progress`, see `Work`. With a shard
                None is returned as long as others are missing in `store`
    settings    of the run, over those that `run` has; and coverage=0.9 with `calibrate`: measure sets that are to hold the
                true class at this rate, and which queries are called unknown, by `Decisions` chosen on the validation
                classes (`decision_measures`)

    With a store, finished episodes are kept there every few seconds (`progress.py`): an interrupted evaluation goes on where
    it stopped. However a run was interrupted or shared, its numbers are the same to the last bit (processors of
    another kind, and other numbers of threads, may differ in the last bits of a logit).

    Raises FewshotError for impossible requests, for a method that needs a base bank that is absent or not of base
    classes, and when a method returns logits that are not finite, naming the episode.
    """
    if isinstance(method, str):
        settings, method = {**settings, "method": method}, None
    work, coverage = Work.taken_from(settings, work), settings.pop("coverage", None)
    source = source_taken_from(settings, work, source)
    run = Run.from_record(run) if isinstance(run, Record) else run
    run = Run(**settings) if run is None else run.changed(**settings) if settings else run
    episodes = None if episodes_file is None else EpisodeList.load(episodes_file)
    if episodes is not None:
        run = of_list(run, episodes)
    if bank is None and (base_bank is not None or notes):
        raise FewshotError(f"{'base_bank' if base_bank is not None else 'notes'} without bank: with a data set its own base "
                           "classes and notes are used; give bank=, too, or leave it out")
    if coverage is not None:
        check_coverage(coverage)
        if calibrate is False:
            raise FewshotError(f"coverage={coverage} without calibrate: thresholds are chosen on validation classes, give "
                               "calibrate=True, or their bank")
    if calibrate is True and bank is not None:
        raise FewshotError("calibrate=True with a bank: pass the bank of the validation classes, calibrate=bank")
    if store is not None and method is not None:
        raise FewshotError("a method instance cannot be stored: its state is not part of the run's name. Write it into "
                           "run.parameters, or evaluate without store")
    if calibrate is True:
        check_images(run, source)  # before the validation classes are embedded
    validation = (resolve(run.changed(split="val"), method=method, source=source).bank if calibrate is True
                  else calibrate or None)
    resolved = resolve(run, bank, base_bank, method=method, episodes=episodes, source=source, notes=notes)
    return evaluate_resolved(resolved, store=store, metrics=metrics, calibrate=validation, coverage=coverage,
                             episodes=episodes, work=work)


def evaluate_resolved(resolved: Resolved, *, store: Store | None = None, metrics: bool = False,
                      calibrate: FeatureBank | ImageBank | None = None, coverage: float | None = None,
                      episodes: EpisodeList | None = None, work: Work | None = None) -> Result | None:
    """As `evaluate`, for what `resolve` returned. A stored result without the measures asked for is made again."""
    run, record, work, start = resolved.run, resolved.record, work or Work(), time.perf_counter()
    if work.shard is not None and store is None:
        raise FewshotError(f"shard={work.shard} without store: shards meet in a store that all of them reach")
    device = own_device(work.device)
    wanted = {name for name, asked in (("nll", metrics), ("temperature", calibrate is not None)) if asked}
    if store is not None and (found := store.load(record)) is not None and wanted <= found.measures.keys() and (
            coverage is None or found.measures.get("coverage_target") == coverage):
        store.parts(record).remove()  # what another process of the same run may have left
        return dataclasses.replace(found, title=resolved.title)  # the folder may have been renamed since
    method, prepare, transductive = ready(resolved, device)
    sampler = run.sampler(resolved.bank) if episodes is None else episodes.of(resolved.bank)
    temperature, decisions = None, None
    if calibrate is not None:
        adapts = coverage is not None and can_adapt(method, transductive)
        answered = validation_answers(run, calibrate, method, prepare, device, adapts)
        decisions = None if coverage is None else decisions_from(answered, coverage)
        temperature = fit_temperature(answered.logits, answered.labels) if decisions is None else decisions.temperature
    scorer = SCORERS.get(run.protocol.name, Scorer)(
        resolved.bank, sampler, method, prepare, run.episodes, metrics or calibrate is not None, temperature, decisions,
        device)
    kept = Parts() if store is None else store.parts(record, scores=scorer.scores, temperature=temperature,
                                                     decisions=decisions and decisions.to_dict(), device=device.type)
    rows, fingerprint = collect(scorer, kept, work, label=f"{record.method} {run.protocol}")
    if not rows.complete:  # a shard; another one may just have put all together
        return None if store is None else store.load(record)
    more = {}
    if temperature is not None:
        more["temperature"] = torch.tensor(temperature, dtype=torch.float64)
    if coverage is not None:
        more["coverage_target"] = torch.tensor(coverage, dtype=torch.float64)
    seconds = rows.seconds + time.perf_counter() - start
    result = result_of(resolved, rows, fingerprint.hexdigest(), seconds, transductive, more)
    if store is not None:
        store.save(result)
        kept.remove()
    return result


def result_of(resolved: Resolved, rows: Rows, fingerprint: str, seconds: float, transductive: bool,
              more: dict[str, Tensor] | None = None) -> Result:
    """The result of the complete `rows`, with `more` measures."""
    measures = rows.arrays | finished(rows.totals, resolved.bank.classes) | (more or {})
    return Result(record=resolved.record, title=resolved.title, correct=measures.pop("correct"),
                  iterations=measures.pop("iterations", None), converged=measures.pop("converged", None), measures=measures,
                  fingerprint=fingerprint, seconds=seconds, notes=resolved.notes, assumes=tuple(resolved.method.assumes),
                  setting="transductive" if transductive else "inductive")


def whole_result(result: Result | None) -> Result:
    """`result` of all episodes; raises FewshotError for the None of a shard whose others are missing."""
    if result is None:
        raise FewshotError("shard= where results of all episodes are needed, and other shards are missing; leave shard out")
    return result
