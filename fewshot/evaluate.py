"""`evaluate(run) -> Result`, and `compare(a, b)` on the same episodes."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from fewshot import provenance
from fewshot.banks import FeatureBank
from fewshot.errors import FewshotError
from fewshot.methods.base import IterativeMethod, Method, create_method
from fewshot.run import Run
from fewshot.sampler import EpisodeIndices, EpisodeSampler
from fewshot.statistics import Comparison, Interval, mean_interval, paired_difference
from fewshot.transforms import parse_transforms

if TYPE_CHECKING:
    from fewshot.pipeline import FeatureSource
    from fewshot.store import Store

_SAMPLE = 2048  # episodes whose row numbers are drawn in one call
_CHUNK_BYTES = 4 << 20  # features of one method call: about what the second-level caches of two cores hold


@dataclass(frozen=True, eq=False)
class Result:
    """What an evaluation found.

    run           the specification, weights as sha256
    correct       [E] float64, accuracy of every episode
    iterations    [E] int64 and converged [E] bool for iterative methods, else None
    fingerprint   sha256 of the episodes (data identity and row numbers); equal fingerprints can be paired
    seconds       wall time of sampling, gathering and the method
    setting       "inductive" or "transductive" (transforms can make it so); assumes: the method's assumptions
    notes         warnings a table must carry, e.g. that the backbone's pre-training saw similar classes
    versions, commit   software
    """

    run: Run
    correct: Tensor
    fingerprint: str
    seconds: float
    setting: str = "inductive"
    assumes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    iterations: Tensor | None = None
    converged: Tensor | None = None
    versions: dict = field(default_factory=provenance.versions)
    commit: str | None = field(default_factory=provenance.commit)

    @cached_property
    def accuracy(self) -> Interval:
        """Mean accuracy and its 95 % Student-t interval over episodes."""
        return mean_interval(self.correct)

    def arrays(self) -> dict[str, Tensor]:
        arrays = {"correct": self.correct, "iterations": self.iterations, "converged": self.converged}
        return {name: value for name, value in arrays.items() if value is not None}

    def summary(self) -> dict:
        """Plain values: what result.json and `--json` hold beside the run."""
        summary = {"accuracy": self.accuracy.mean, "interval95": self.accuracy.half_width, "episodes": self.accuracy.n,
                   "interval_covers": self.accuracy.covers, "fingerprint": self.fingerprint, "seconds": self.seconds,
                   "setting": self.setting, "assumes": list(self.assumes), "notes": list(self.notes),
                   "versions": self.versions, "commit": self.commit}
        if self.converged is not None:
            summary["converged"] = float(self.converged.double().mean())
            summary["iterations"] = float(self.iterations.double().mean())
        return summary

    @classmethod
    def from_parts(cls, run: Run, arrays: dict[str, Tensor], summary: dict) -> Result:
        kept = {key: summary[key] for key in ("fingerprint", "seconds", "setting", "versions", "commit")}
        return cls(run=run, assumes=tuple(summary["assumes"]), notes=tuple(summary["notes"]), **arrays, **kept)

    def __repr__(self) -> str:
        return f"<{self.run.method} on {self.run.dataset}, {self.run.protocol}: {self.accuracy.percent()} %>"


def evaluate(run: Run | None = None, bank: FeatureBank | None = None, *, base_bank: FeatureBank | None = None,
             method: str | Method | None = None, store: Store | None = None, progress: bool = False, root=None, cache=None,
             source: FeatureSource | None = None, notes: tuple[str, ...] = (), **settings) -> Result:
    """Accuracy of one method on the episodes of `run`.

    run         the specification, or give its settings as keywords: `evaluate(dataset="glyphs", shots=5)`
    bank        features of the split; without it the data set is loaded and embedded (cached in `cache`)
    base_bank   features of the base classes, for methods and transforms that need their statistics
    method      a name, as any other setting of the run; or an instance to use instead of creating `run.method`
    store       where finished results are kept: a run that is there is returned, not repeated
    progress    show a progress bar
    source      a `FeatureSource` shared by many runs, so that each image and feature is loaded once

    Raises FewshotError for impossible requests, for a method that needs a base bank that is absent or not of base
    classes, and when a method returns logits that are not finite, naming the episode.
    """
    if isinstance(method, str):
        settings, method = {"parameters": {}, **settings, "method": method}, None
    if run is None:
        run = Run(**settings)
    elif settings:
        run = dataclasses.replace(run, **settings)
    bank, base_bank, run, found = resolve(run, bank, base_bank, root=root, cache=cache, source=source, progress=progress)
    return evaluate_resolved(run, bank, base_bank=base_bank, method=method, store=store, progress=progress,
                             notes=found or notes)


def evaluate_resolved(run: Run, bank: FeatureBank, *, base_bank: FeatureBank | None = None, method: Method | None = None,
                      store: Store | None = None, progress: bool = False, notes: tuple[str, ...] = ()) -> Result:
    """As `evaluate`, for a run that states the identity of its data and weights already, as `resolve` returns it: many
    runs on one bank then need no second look at the images."""
    if store is not None and (found := store.load(run)) is not None:
        return found
    if store is not None and method is not None:
        raise FewshotError("a method instance cannot be stored: its state is not part of the run's name. Write it into "
                           "run.parameters, or evaluate without store")
    method = method or create_method(run.method, **run.parameters)
    if method.inputs != "features":
        raise FewshotError(f"{run.method} adapts the backbone to each episode's images, and evaluate scores methods on "
                           "features; fewshot.train trains it, and its validation scores it on images")
    chain = parse_transforms(run.transforms).fit(base_bank)
    if method.needs_base:
        method = method.fit(chain.bank(_required(base_bank, method)))
    sampler = EpisodeSampler(bank, ways=run.ways, shots=run.shots, queries=run.queries, seed=run.seed,
                             query_distribution=run.query_distribution, alpha=run.alpha, k_eff=run.k_eff)
    result = _score(run, bank, sampler, method, chain, notes, progress)
    if store is not None:
        store.save(result)
    return result


def resolve(run: Run, bank: FeatureBank | None = None, base_bank: FeatureBank | None = None, *, root=None, cache=None,
            source: FeatureSource | None = None, progress: bool = False,
            ) -> tuple[FeatureBank, FeatureBank | None, Run, tuple[str, ...]]:
    """(bank, base bank where one is needed or given, the run with the identities of both, notes), from the banks given or,
    without them, from the data set and backbone that `run` names."""
    if bank is not None:
        return bank, base_bank, _labelled(run, bank, base_bank), ()
    from fewshot.pipeline import FeatureSource  # loads torchvision and timm: only where images are needed

    return (source or FeatureSource(root, cache, progress)).banks(run)


def compare(a: Result, b: Result, confidence: float = 0.95) -> Comparison:
    """Paired difference a - b; raises FewshotError when the results are not on the same episodes."""
    if a.fingerprint != b.fingerprint:
        raise FewshotError(f"results are on different episodes ({a.run.protocol}, {a.run.episodes} episodes, seed "
                           f"{a.run.seed}, data {a.run.dataset} against {b.run.protocol}, {b.run.episodes}, {b.run.seed}, "
                           f"{b.run.dataset}); evaluate both with the same data, protocol, seed and episodes")
    return paired_difference(a.correct, b.correct, confidence)


def _labelled(run: Run, bank: FeatureBank, base_bank: FeatureBank | None) -> Run:
    """`run` with the identities of the banks it was given."""
    for name, given in (("bank", bank), ("base_bank", base_bank)):
        if given is not None and not isinstance(given, FeatureBank):
            raise FewshotError(f"{name} is a {type(given).__name__}; pass a FeatureBank (fewshot.embed(images, backbone))")
    if base_bank is not None:
        if base_bank.split == "test" or base_bank.identity == bank.identity:
            raise FewshotError(f"base_bank holds split {base_bank.split!r} of {base_bank.name}; statistics come from base "
                               "classes (split 'train'), never from those that are evaluated")
        if base_bank.features.shape[1] != bank.features.shape[1]:
            raise FewshotError(f"base_bank has {base_bank.features.shape[1]} features an item, bank "
                               f"{bank.features.shape[1]}; extract both with the same backbone")
    made_by = bank.provenance.get("backbone", "features" if run.backbone == Run.backbone else run.backbone)
    return dataclasses.replace(run, data=bank.content_hash, dataset=bank.name, split=bank.split, backbone=made_by,
                               weights=bank.provenance.get("weights_id", run.weights),
                               base=base_bank.content_hash if base_bank is not None and run.needs_base else None)


def _required(base_bank: FeatureBank | None, method: Method) -> FeatureBank:
    if base_bank is None:
        raise FewshotError(f"{type(method).__name__} needs statistics of the base classes: pass base_bank=..., or choose "
                           "settings that do without (e.g. norm='l2n')")
    return base_bank


def _score(run, bank, sampler, method, chain, notes, progress) -> Result:
    digest = hashlib.sha256(bank.identity.encode())
    arrays: dict[str, Tensor] = {}
    done, start = 0, time.perf_counter()
    with torch.inference_mode(), tqdm(total=run.episodes, unit="ep", desc=f"{run.method} {run.protocol}",
                                      disable=not progress, leave=False) as bar:
        for indices, chunks in _chunks(sampler, run.episodes, bank):
            for rows in (indices.support, indices.query, indices.query_labels):
                digest.update(rows.numpy().tobytes())
            for chunk in chunks:
                for name, values in _answer(method, chain(chunk.gather(bank)), chunk.query_labels).items():
                    # Written into one array: small tensors kept alive among the freed features of each chunk would
                    # split the heap, and memory would grow with the number of episodes.
                    if name not in arrays:
                        arrays[name] = torch.empty(run.episodes, dtype=values.dtype)
                    arrays[name][done : done + len(chunk)] = values
                done += len(chunk)
                bar.update(len(chunk))
    transductive = method.setting == "transductive" or chain.transductive
    return Result(run=run, fingerprint=digest.hexdigest(), seconds=time.perf_counter() - start, notes=notes,
                  setting="transductive" if transductive else "inductive", assumes=tuple(method.assumes), **arrays)


def _chunks(sampler: EpisodeSampler, episodes: int, bank) -> Iterator[tuple[EpisodeIndices, list[EpisodeIndices]]]:
    for start in range(0, episodes, _SAMPLE):
        indices = sampler.indices(start, min(_SAMPLE, episodes - start))
        row = bank.features.shape[1] * bank.features.element_size()
        size = max(1, _CHUNK_BYTES // (row * (indices.support.shape[1] + indices.query.shape[1])))
        yield indices, [indices[i : i + size] for i in range(0, len(indices), size)]


def _answer(method: Method, episodes, query_labels: Tensor) -> dict[str, Tensor]:
    extra = {}
    if isinstance(method, IterativeMethod):
        refinement = method.refine(episodes)
        logits = refinement.logits
        extra = {"iterations": refinement.iterations, "converged": refinement.converged}
    else:
        logits = method(episodes)
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
        raise FewshotError(f"{type(method).__name__} returned logits that are not finite (episode {bad} of a chunk of "
                           f"{len(episodes)}); check the features, or use float64")
    correct = (logits.argmax(-1) == query_labels).double().mean(1)
    return {"correct": correct, **extra}
