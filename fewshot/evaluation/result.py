"""`Result`: what an evaluation found, and `compare(a, b)` on the same episodes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fewshot.core import provenance
from fewshot.core.errors import FewshotError
from fewshot.core.html import html_table
from fewshot.core.registry import unknown_message
from fewshot.evaluation.measures import summary_of
from fewshot.evaluation.record import Record
from fewshot.statistics import Comparison, Interval, bootstrap_interval, class_interval, mean_interval, paired_difference

INTERVALS = {"episodes": "accuracy", "classes": "over_classes", "bootstrap": "bootstrapped"}
_MOST_BOOTSTRAPPED = 200_000


@dataclass(frozen=True, eq=False)
class Result:
    """What an evaluation found.

    record        what was evaluated, weights as sha256
    correct       [E] float64, accuracy of every episode
    iterations    [E] int32 and converged [E] bool for iterative methods, else None
    fingerprint   sha256 of the episodes (data identity and row numbers); equal fingerprints can be paired
    seconds       wall time of sampling, gathering and the method; where a run was shared or resumed, the sum of its pieces
    setting       "inductive" or "transductive" (transforms can make it so); assumes: the method's assumptions
    notes         warnings a table must carry, e.g. that the backbone's pre-training saw similar classes
    versions, commit   software
    measures      what was measured beside accuracy: per episode `classes`, `class_correct` and `class_total` [E, N] (the
                  bank's classes, right answers and queries of each), and with metrics=True what `measures.py` lists
    title         what own data are called, "flowers#3fa2c1": their folder or file and the beginning of a hash; no part of
                  the record, whose data set is e.g. "folder"
    """

    record: Record
    correct: Tensor
    fingerprint: str
    seconds: float
    setting: str = "inductive"
    assumes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    iterations: Tensor | None = None
    converged: Tensor | None = None
    measures: dict[str, Tensor] = field(default_factory=dict)
    title: str = ""
    versions: dict = field(default_factory=provenance.versions)
    commit: str | None = field(default_factory=provenance.commit)

    @property
    def protocol(self) -> str:
        """The protocol in a few words, such as "5-way 1-shot"."""
        return str(self.record.protocol)

    @property
    def data_name(self) -> str:
        """The data set, own data by their title."""
        return self.title or self.record.dataset

    @cached_property
    def accuracy(self) -> Interval:
        """Mean accuracy and its 95 % Student-t interval over episodes."""
        return mean_interval(self.correct, covers=self.record.protocol.covers)

    @cached_property
    def over_classes(self) -> Interval:
        """Mean accuracy and its 95 % interval over novel classes and episodes (`statistics.class_interval`)."""
        if "classes" not in self.measures:
            raise FewshotError(f"run {self.record.key} was stored without the classes of its episodes; delete it and "
                               "evaluate again for an interval over classes")
        return class_interval(self.correct, self.measures["classes"])

    @cached_property
    def bootstrapped(self) -> Interval:
        """Mean accuracy and its 95 % bootstrap interval over episodes, BCa for up to 10,000 of them."""
        if len(self.correct) > _MOST_BOOTSTRAPPED:
            raise FewshotError(f"a bootstrap of {len(self.correct)} episodes takes minutes and gives what Student's t does; "
                               f"use the interval over episodes above {_MOST_BOOTSTRAPPED}")
        return bootstrap_interval(self.correct, method="bca" if len(self.correct) <= 10_000 else "percentile")

    def interval(self, over: str) -> Interval:
        """Mean accuracy and its interval: over "episodes", over "classes", or by "bootstrap"."""
        if over not in INTERVALS:
            raise FewshotError(unknown_message("interval", over, list(INTERVALS)))
        return getattr(self, INTERVALS[over])

    def arrays(self) -> dict[str, Tensor]:
        arrays = {"correct": self.correct, "iterations": self.iterations, "converged": self.converged, **self.measures}
        return {name: value for name, value in arrays.items() if value is not None}

    def summary(self) -> dict:
        """Plain values: what result.json and `--json` hold beside the run."""
        summary = {"accuracy": self.accuracy.mean, "interval95": self.accuracy.half_width, "episodes": self.accuracy.n,
                   "interval_covers": self.accuracy.covers, "fingerprint": self.fingerprint, "seconds": self.seconds,
                   "setting": self.setting, "assumes": list(self.assumes), "notes": list(self.notes),
                   "versions": self.versions, "commit": self.commit, **({"title": self.title} if self.title else {})}
        if self.converged is not None and self.iterations is not None:
            summary["converged"] = float(self.converged.double().mean())
            summary["iterations"] = float(self.iterations.double().mean())
        with contextlib.suppress(FewshotError):  # without classes, or with too few of them
            summary["interval95_classes"] = self.over_classes.half_width
        return summary | summary_of(self.measures)

    @classmethod
    def from_parts(cls, record: Record, arrays: dict[str, Tensor], summary: dict) -> Result:
        kept = {key: summary[key] for key in ("fingerprint", "seconds", "setting", "versions", "commit")}
        return cls(record=record, correct=arrays.pop("correct"), iterations=arrays.pop("iterations", None),
                   converged=arrays.pop("converged", None), measures=arrays, assumes=tuple(summary["assumes"]),
                   notes=tuple(summary["notes"]), title=summary.get("title", ""), **kept)

    def __repr__(self) -> str:
        return f"<{self.record.method} on {self.data_name}, {self.protocol}: {self.accuracy.percent()} %>"

    def _repr_html_(self) -> str:
        record, found, weights = self.record, self.accuracy, str(self.record.weights or "")
        weights = weights[:8] if len(weights) >= 64 else weights  # a hash, or random:SEED
        rows = [("accuracy", f"{found.percent()} %, {found.confidence:.0%} interval over {found.n:,} episodes"),
                ("protocol", f"{self.protocol}, seed {record.seed}"),
                ("data", f"{self.data_name}, split {record.split}"),
                ("features", record.backbone + ("" if weights in ("", "none") else f", weights {weights}")),
                ("setting", ", assumes ".join([self.setting, *self.assumes])),
                ("run", f"{record.key}, commit {(self.commit or 'unknown')[:8]}, {self.seconds:.1f} s")]
        return html_table(record.method, rows, below=self.notes)


def compare(a: Result, b: Result, confidence: float = 0.95) -> Comparison:
    """Paired difference a - b; raises FewshotError when the results are not on the same episodes."""
    if a.fingerprint != b.fingerprint:
        here, there = (f"{r.protocol}, {r.record.episodes} episodes, seed {r.record.seed}, data {r.data_name}"
                       for r in (a, b))
        raise FewshotError(f"results are on different episodes ({here} against {there}); evaluate both with the same data, "
                           "protocol, seed and episodes")
    return paired_difference(a.correct, b.correct, confidence)
