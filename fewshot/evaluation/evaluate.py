"""`evaluate(run) -> Result`: accuracy of one method on the episodes of a run."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewshot.core.errors import FewshotError, check_at_least
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.episodes.saved import EpisodeList
from fewshot.evaluation.calibration import validation_temperature
from fewshot.evaluation.collect import collect
from fewshot.evaluation.measures import finished
from fewshot.evaluation.progress import Parts
from fewshot.evaluation.resolve import Resolved, ready, resolve
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.scorer import Scorer
from fewshot.methods.contract import Method

if TYPE_CHECKING:
    from fewshot.evaluation.store import Store
    from fewshot.features.source import FeatureSource


def evaluate(run: Run | None = None, bank: FeatureBank | ImageBank | None = None, *, base_bank: FeatureBank | None = None,
             method: str | Method | None = None, store: Store | None = None, progress: bool = False, root=None, cache=None,
             source: FeatureSource | None = None, notes: tuple[str, ...] = (), metrics: bool = False,
             calibrate: bool | FeatureBank = False, episodes_file: str | Path | None = None, workers: int = 1,
             shard: tuple[int, int] | None = None, **settings) -> Result | None:
    """Accuracy of one method on the episodes of `run`.

    run         the specification, or give its settings as keywords: `evaluate(dataset="glyphs", shots=5)`
    bank        features of the split (images, for a trained learner on images given as `method`); without it the data set
                is loaded, and embedded where the method takes features (cached in `cache`)
    base_bank   features of the base classes, for methods and transforms that need their statistics
    method      a name, as any other setting of the run; or an instance to use instead of creating `run.method`
    store       where finished results are kept: a run that is there is returned, not repeated
    progress    show a progress bar
    source      a `FeatureSource` shared by many runs, so that each image and feature is loaded once
    notes       warnings that tables must carry, for a bank given; others are found
    metrics     measure probabilities, too: negative log-likelihood, Brier score, calibration error, confusion matrix
    calibrate   also measure them with a temperature fitted on validation episodes: True for the validation classes of the
                run's data set, or their bank
    episodes_file   episodes saved by `EpisodeList.save`, instead of drawing them; they set the protocol of the run
    workers     processes that share the work, one thread each (1: this one, with its threads)
    shard       (i, n): evaluate only the i-th of n ranges of episodes (0 <= i < n) and keep it in `store`; None is returned
                as long as others are missing there

    With a store, finished episodes are kept there every few seconds (`progress.py`): an interrupted evaluation goes on where
    it stopped. However a run was interrupted or shared, its numbers are the same to the last bit (processors of
    another kind, and other numbers of threads, may differ in the last bits of a logit).

    Raises FewshotError for impossible requests, for a method that needs a base bank that is absent or not of base
    classes, and when a method returns logits that are not finite, naming the episode.
    """
    if isinstance(method, str):
        settings, method = {"parameters": {}, **settings, "method": method}, None
    if run is None:
        run = Run(**settings)
    elif settings:
        run = dataclasses.replace(run, **settings)
    episodes = None if episodes_file is None else EpisodeList.load(episodes_file)
    if episodes is not None:
        run = dataclasses.replace(run, **episodes.protocol, episode_list=episodes.fingerprint)
    if bank is None and (base_bank is not None or notes):
        raise FewshotError(f"{'base_bank' if base_bank is not None else 'notes'} without bank: with a data set its own base "
                           "classes and notes are used; give bank=, too, or leave it out")
    if calibrate is True and bank is not None:
        raise FewshotError("calibrate=True with a bank: pass the bank of the validation classes, calibrate=bank")
    if store is not None and method is not None:
        raise FewshotError("a method instance cannot be stored: its state is not part of the run's name. Write it into "
                           "run.parameters, or evaluate without store")
    if shard is not None and store is None:
        raise FewshotError(f"shard={shard} without store: shards meet in a store that all of them reach")
    found = {"method": method, "root": root, "cache": cache, "source": source, "progress": progress}
    if calibrate is True:
        calibrate = resolve(dataclasses.replace(run, split="val"), **found).bank
    return evaluate_resolved(resolve(run, bank, base_bank, notes=notes, **found), store=store, progress=progress,
                             metrics=metrics, calibrate=calibrate or None, episodes=episodes, workers=workers, shard=shard)


def evaluate_resolved(resolved: Resolved, *, store: Store | None = None, progress: bool = False, metrics: bool = False,
                      calibrate: FeatureBank | ImageBank | None = None, episodes: EpisodeList | None = None,
                      workers: int = 1, shard: tuple[int, int] | None = None) -> Result | None:
    """As `evaluate`, for what `resolve` returned. A stored result without the measures asked for is made again."""
    run, bank, start = resolved.run, resolved.bank, time.perf_counter()
    check_at_least(1, workers=workers)
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise FewshotError(f"shard={shard[0]}/{shard[1]}; shards of n are numbered 0 to n-1")
    wanted = {name for name, asked in (("nll", metrics), ("temperature", calibrate is not None)) if asked}
    if store is not None and (found := store.load(run)) is not None and wanted <= found.measures.keys():
        store.parts(run).remove()  # what another process of the same run may have left
        return found
    method, prepare, transductive = ready(resolved)
    sampler = run.sampler(bank) if episodes is None else episodes.of(bank)
    temperature = None if calibrate is None else validation_temperature(run, calibrate, method, prepare)
    scorer = Scorer(bank, sampler, method, prepare, run.episodes, metrics or calibrate is not None, temperature)
    kept = Parts() if store is None else store.parts(run, scores=scorer.scores, temperature=temperature)
    rows, fingerprint = collect(scorer, kept, shard=shard, workers=workers, progress=progress,
                                label=f"{run.method} {run.protocol}")
    if not rows.complete:
        return store.load(run)  # another shard may just have put all together
    measures = rows.arrays | finished(rows.totals, bank.classes)
    if temperature is not None:
        measures["temperature"] = torch.tensor(temperature, dtype=torch.float64)
    own = {name: measures.pop(name) for name in ("correct", "iterations", "converged") if name in measures}
    result = Result(run=run, fingerprint=fingerprint.hexdigest(), seconds=rows.seconds + time.perf_counter() - start,
                    measures=measures, notes=resolved.notes, assumes=tuple(method.assumes),
                    setting="transductive" if transductive else "inductive", **own)
    if store is not None:
        store.save(result)
        kept.remove()
    return result
