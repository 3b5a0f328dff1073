"""Many values of the hyper-parameters of one `GridMethod`, evaluated on the same episodes at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch

from fewshot.core.bars import tqdm
from fewshot.core.team import own_device
from fewshot.evaluation.batching import check_finite
from fewshot.evaluation.collect import Fingerprint, Rows
from fewshot.evaluation.evaluate import result_of
from fewshot.evaluation.measures import Measures
from fewshot.evaluation.progress import Part
from fewshot.evaluation.resolve import Resolved, moved, ready
from fewshot.evaluation.result import Result
from fewshot.evaluation.scorer import Scorer
from fewshot.evaluation.store import Store
from fewshot.evaluation.work import Work
from fewshot.methods.bases.grid import GridMethod, Values


def evaluate_together(method: GridMethod, candidates: Sequence[Resolved], settings: Sequence[Values], store: Store | None,
                      work: Work) -> list[Result]:
    """The results of the candidates, number i being `method` with settings[i], equal to those that each has alone. They
    share everything but these values, which are among `method.reused`. What `store` has is not evaluated again."""
    start, known = time.perf_counter(), {}
    for number, candidate in enumerate(candidates):
        if store is not None and (found := store.load(candidate.record)) is not None:
            known[number] = dataclasses.replace(found, title=candidate.title)
    wanted = [number for number in range(len(candidates)) if number not in known]
    if wanted:
        first, device = candidates[0], own_device(work.device)
        _, prepare, transductive = ready(first, device)
        scorer = Scorer(first.bank, first.run.sampler(first.bank), moved(method, device), prepare, first.run.episodes,
                        device=device)
        rows, fingerprint = _rows(scorer, [settings[number] for number in wanted], work, f"{first.record.method}, together")
        seconds = (time.perf_counter() - start) / len(wanted)
        for number, found_rows in zip(wanted, rows, strict=True):
            known[number] = result_of(candidates[number], found_rows, fingerprint, seconds, transductive)
    for number, candidate in enumerate(candidates):
        if store is not None:
            if number in wanted:
                store.save(known[number])
            store.parts(candidate.record).remove()
    return [known[number] for number in range(len(candidates))]


def _rows(scorer: Scorer, settings: Sequence[Values], work: Work, label: str) -> tuple[list[Rows], str]:
    """What each of the settings answers, in the chunks of an evaluation of one, and the fingerprint of the episodes."""
    found, measures = [Rows(scorer.episodes) for _ in settings], Measures(scorer.bank.classes)
    fingerprint, method = Fingerprint(scorer), scorer.method
    assert isinstance(method, GridMethod), "of a GridMethod"
    with (torch.inference_mode(),
          tqdm(total=scorer.episodes, unit="ep", desc=label, disable=not work.progress, leave=False) as bar):
        for start, stop in scorer.split(0, scorer.episodes, scorer.block):
            at = start
            for chunk in scorer.draw(start, stop).split(scorer.chunk):
                episodes = scorer.prepared(chunk)
                for number, logits in method.logits_over(episodes, settings):
                    check_finite(method, logits)
                    answered = measures(logits.cpu(), chunk.query_labels, chunk.classes)
                    found[number].add(Part(at, at + len(chunk), answered, {}))
                at += len(chunk)
            fingerprint.reach(stop)
            bar.update(stop - start)
    return found, fingerprint.hexdigest()
