"""Which blocks of a backbone to adapt, chosen on validation episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.evaluation.resolve import resolve
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.evaluation.work import Work, source_taken_from
from fewshot.features.source import FeatureSource
from fewshot.methods.contract import method_parameters
from fewshot.methods.finetune import LAYERS
from fewshot.ops.network_blocks import block_numbers, network_blocks
from fewshot.tuning.search import TuneResult, check_validation, refuse_unknown, tune

FIELDS = ("blocks", "layers")  # how methods call it


def tune_placement(run: Run, *, rounds: int = 10, store: Store | None = None, source: FeatureSource | None = None,
                   work: Work | None = None, **settings: Any) -> list[TuneResult]:
    """Greedy search for the blocks that `run.method` (finetune, pmf, film, lora, tsa) adapts, on the episodes of `run`,
    split="val". Every round is a search of `fewshot.tune`: the present placement against all that differ from it in one
    block, and in the first round also against no block and all blocks. It moves to the best of them, and ends where that
    cannot be distinguished from the present one, or after `rounds`.

    Returns the rounds; `found[-1].chosen` holds the placement, `found[-1].best` the run on validation classes. All
    candidates see the same episodes; `source`, `work` and `settings` are those of `tune`. Start from blocks="none" to have
    only blocks adapted that demonstrably help, from "all" to have only those left out that do harm. With a `store` an
    evaluation that was made is not repeated.

    After Eustratiadis et al. 2023 (Neural Fine-Tuning Search, arXiv:2306.09295), who choose for every layer whether it is
    frozen, fine-tuned or has an adapter. Deviations: blocks instead of layers, one kind of adaptation (that of the
    method), every candidate adapted for itself instead of the paths of one trained supernetwork, steps of one block
    instead of an evolutionary search, and one placement instead of several from which the support of a test episode
    chooses.

    Raises FewshotError for a split other than "val" and for a method that adapts no blocks.
    """
    check_validation(run)
    if rounds < 1:
        raise FewshotError(f"rounds={rounds}; at least 1 is needed")
    field = next((name for name in FIELDS if name in method_parameters(run.method)), None)
    if field is None:
        raise FewshotError(f"{run.method} does not adapt blocks of a backbone; choose finetune, pmf, film, lora or tsa")
    work = Work.taken_from(settings, work)
    source = source_taken_from(settings, work, source)
    refuse_unknown(settings)
    learner: Any = resolve(run, source=source).method  # it holds its backbone and settings, as all that adapt blocks
    count = len(network_blocks(learner.backbone))
    present = _as_numbers(getattr(learner.settings, field), count)
    found: list[TuneResult] = []
    tried = [(), tuple(range(count))]
    for _ in range(rounds):
        flips = [tuple(sorted({*present} ^ {number})) for number in range(count)]
        start = run.changed(parameters={**run.parameters, field: _as_text(present, field)})
        found.append(tune(start, {field: [_as_text(numbers, field) for numbers in (*tried, *flips)]}, source=source,
                          store=store, work=work))
        chosen = _as_numbers(found[-1].chosen[field], count)
        if chosen == present:
            break
        present, tried = chosen, []
    return found


def _as_text(numbers: Sequence[int], field: str) -> str:
    """How a method names these blocks, the same for equal placements."""
    nothing = {"blocks": "none", "layers": "head"}[field]
    return ",".join(map(str, numbers)) or nothing


def _as_numbers(text: str, count: int) -> tuple[int, ...]:
    named = {"none": (), "last": (count - 1,), "all": tuple(range(count))}
    text = LAYERS.get(text, text)
    return named[text] if text in named else tuple(block_numbers(text))
