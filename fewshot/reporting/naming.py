"""Names for results: the fewest settings that tell them apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fewshot.core.errors import FewshotError
from fewshot.core.frozen import frozen, plain
from fewshot.core.registry import unknown_message
from fewshot.core.settings import settings_of
from fewshot.episodes.protocol import protocol_settings
from fewshot.evaluation.method_spec import MethodSpec
from fewshot.evaluation.record import IDENTITIES
from fewshot.evaluation.result import Result
from fewshot.features.subject import Subject
from fewshot.methods.contract import METHODS, method_parameters

_SUBJECT, _METHOD = settings_of(Subject), settings_of(MethodSpec)
_SHORT = 60  # characters of a dictionary that a label has room for


def in_protocol() -> tuple[str, ...]:
    """"protocol", and the settings that its text names."""
    return "protocol", *(name for name, known in protocol_settings().items() if known.named)


def episode_fields() -> tuple[str, ...]:
    """All settings that say which episodes a result is on."""
    return ("protocol", *protocol_settings(), "dataset", "split", "episodes", "seed", "data_options", "episode_list")


def _visible() -> tuple[str, ...]:
    """Shown whenever they vary, and in the order in which labels and row headings name them."""
    return tuple(name for name, known in {**_SUBJECT, **_METHOD}.items() if known.shown)


def _separating() -> tuple[str, ...]:
    """What may tell two results of one cell apart; the first that does becomes a row heading."""
    last = ("data_options", "setting", "data", "base")
    names = (*_visible(), *_SUBJECT, *_METHOD, *protocol_settings(), "episode_list", "episodes", "seed")
    return (*dict.fromkeys(name for name in names if name not in last), *last)


def result_field(result: Result, name: str) -> str:
    """A run setting, "protocol" or "setting" of a result as text; parameters: those not at their default."""
    record = result.record
    if name in ("setting", "protocol"):
        return getattr(result, name)
    known = [*_SUBJECT, *_METHOD, *protocol_settings(), "episodes", "seed", *IDENTITIES, "protocol", "setting"]
    if name not in known:
        raise FewshotError(unknown_message("table field", name, known))
    if name == "dataset":
        return result.data_name
    value = getattr(record, name)
    if name == "parameters":
        defaults = method_parameters(record.method) if record.method in METHODS else {}
        value = {key: v for key, v in value.items() if key not in defaults or v != frozen(defaults[key])}
        return parameter_text(value) or "defaults"
    if isinstance(value, dict):
        return parameter_text(value) or "none"
    if value is None or value == "":
        return "none"
    if name == "weights" and value.startswith("random:"):
        seed = value.removeprefix("random:")
        return "untrained" if seed == "0" else f"untrained (seed {seed})"
    return value[:8] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}(\+\w+)?", value) else str(value)


def separating_fields(results: Sequence[Result], names: tuple[str, ...],
                      without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What must be named beside `names` so that different results have different labels (`without` is never added)."""
    used = (*names, *without)
    if "protocol" in used:
        used += in_protocol()
    added = []
    for name in _visible():
        if name not in used and len({result_field(r, name) for r in results}) > 1:
            added.append(name)
    for name in _separating():
        if name in used or name in added:
            continue
        values = defaultdict(set)
        for result in results:
            values[tuple(result_field(result, n) for n in (*names, *without, *added))].add(result_field(result, name))
        if any(len(v) > 1 for v in values.values()):
            added.append(name)
    return tuple(added)


def distinct_labels(results: Sequence[Result], without: tuple[str, ...] = ()) -> list[str]:
    """The shortest labels that tell the results apart, e.g. `conv4 protonet (seed 1)`; `without` is shown elsewhere."""
    added = separating_fields(results, ("method",), without)
    front = [n for n in ("dataset", "split", "backbone") if n in added]
    behind = [n for n in added if n not in front]
    labels = []
    for result in results:
        name = " ".join(result_field(result, n) for n in (*front, "method"))
        extra = ", ".join(_with_name(result, n) for n in behind)
        labels.append(f"{name} ({extra})" if extra else name)
    return labels


def unique_results(results: Iterable[Result]) -> list[Result]:
    """The results without repetitions of a run; raises FewshotError for none, and when repetitions disagree."""
    found: dict[str, Result] = {}
    for result in results:
        known = found.setdefault(result.record.key, result)
        if not known.correct.equal(result.correct):
            raise FewshotError(f"two results of run {result.record.key} ({result.record.method}, {result.protocol}) "
                               f"differ: {known.accuracy.percent()} and {result.accuracy.percent()}; keep one of them")
    if not found:
        raise FewshotError("no results; evaluate a run first")
    return list(found.values())


def natural(text: str) -> list:
    """Sort key that puts 5-shot before 10-shot."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", text))]


def _with_name(result: Result, name: str) -> str:
    text = result_field(result, name)
    says_itself = name in ("parameters", "setting", "protocol") or text.startswith("untrained")
    return text if says_itself else f"{name.replace('_', ' ')} {text}"


def parameter_text(values: dict) -> str:
    """`scale=10, norm=l2n`."""
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: object) -> str:
    """Of dictionaries, those of settings are shown. Learned values are dozens of numbers: a label has room for their digest
    only (the run holds them in full)."""
    text = str(plain(value)) if isinstance(value, dict) else str(value)
    if not isinstance(value, dict) or len(text) <= _SHORT:
        return text
    return "#" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
