"""`evaluate(run) -> Result`, and `compare(a, b)` on the same episodes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewshot import provenance
from fewshot.banks import FeatureBank, ImageBank
from fewshot.calibration import validation_temperature
from fewshot.episode_list import EpisodeList
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError, check_at_least
from fewshot.measures import finished, summary_of
from fewshot.methods.base import METHODS, Method, create_method, method_parameters
from fewshot.parts import Parts
from fewshot.registry import unknown_message
from fewshot.run import Run
from fewshot.scoring import Scorer, collect
from fewshot.statistics import Comparison, Interval, bootstrap_interval, class_interval, mean_interval, paired_difference
from fewshot.transforms import parse_transforms

if TYPE_CHECKING:
    from fewshot.pipeline import FeatureSource
    from fewshot.store import Store

INTERVALS = {"episodes": "accuracy", "classes": "over_classes", "bootstrap": "bootstrapped"}
_MOST_BOOTSTRAPPED = 200_000


@dataclass(frozen=True, eq=False)
class Result:
    """What an evaluation found.

    run           the specification, weights as sha256
    correct       [E] float64, accuracy of every episode
    iterations    [E] int32 and converged [E] bool for iterative methods, else None
    fingerprint   sha256 of the episodes (data identity and row numbers); equal fingerprints can be paired
    seconds       wall time of sampling, gathering and the method; where a run was shared or resumed, the sum of its pieces
    setting       "inductive" or "transductive" (transforms can make it so); assumes: the method's assumptions
    notes         warnings a table must carry, e.g. that the backbone's pre-training saw similar classes
    versions, commit   software
    measures      what was measured beside accuracy: per episode `classes`, `class_correct` and `class_total` [E, N] (the
                  bank's classes, right answers and queries of each), and with metrics=True what `fewshot.measures` lists
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
    measures: dict[str, Tensor] = field(default_factory=dict)
    versions: dict = field(default_factory=provenance.versions)
    commit: str | None = field(default_factory=provenance.commit)

    @cached_property
    def accuracy(self) -> Interval:
        """Mean accuracy and its 95 % Student-t interval over episodes."""
        return mean_interval(self.correct)

    @cached_property
    def over_classes(self) -> Interval:
        """Mean accuracy and its 95 % interval over novel classes and episodes (`statistics.class_interval`)."""
        if "classes" not in self.measures:
            raise FewshotError(f"run {self.run.key} was stored without the classes of its episodes; delete it and evaluate "
                               "again for an interval over classes")
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
                   "versions": self.versions, "commit": self.commit}
        if self.converged is not None:
            summary["converged"] = float(self.converged.double().mean())
            summary["iterations"] = float(self.iterations.double().mean())
        with contextlib.suppress(FewshotError):  # without classes, or with too few of them
            summary["interval95_classes"] = self.over_classes.half_width
        return summary | summary_of(self.measures)

    @classmethod
    def from_parts(cls, run: Run, arrays: dict[str, Tensor], summary: dict) -> Result:
        kept = {key: summary[key] for key in ("fingerprint", "seconds", "setting", "versions", "commit")}
        own = {name: arrays.pop(name) for name in ("correct", "iterations", "converged") if name in arrays}
        return cls(run=run, assumes=tuple(summary["assumes"]), notes=tuple(summary["notes"]), measures=arrays, **own, **kept)

    def __repr__(self) -> str:
        return f"<{self.run.method} on {self.run.dataset}, {self.run.protocol}: {self.accuracy.percent()} %>"


@dataclass(frozen=True, eq=False)
class Resolved:
    """A run whose data and weights are at hand.

    run         with the identities of data and weights, as results are stored
    bank        of the evaluated classes: images for a method that adapts to images, else features
    base_bank   features of the base classes, where the run needs them
    method      not yet fitted to the base classes
    transform   from the stored images to what the method takes, for a bank of images
    notes       warnings a table must carry
    """

    run: Run
    bank: FeatureBank | ImageBank
    base_bank: FeatureBank | None
    method: Method
    transform: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()


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

    With a store, finished episodes are kept there every few seconds (`fewshot.parts`): an interrupted evaluation goes on
    where it stopped. However a run was interrupted or shared, its numbers are the same to the last bit (processors of
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
    measures = rows.arrays | finished(rows.totals)
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


def ready(resolved: Resolved) -> tuple[Method, Callable[[Episodes], Episodes], bool]:
    """(method fitted to the base classes, what its episodes pass before, whether either looks at all queries at once)."""
    method, chain = resolved.method, parse_transforms(resolved.run.transforms).fit(resolved.base_bank)
    if method.needs_base:
        method = method.fit(chain.bank(_required(resolved.base_bank, method)))
    prepare = chain if resolved.transform is None else partial(Episodes.with_features, transform=resolved.transform)
    return method, prepare, method.setting == "transductive" or chain.transductive


def resolve(run: Run, bank: FeatureBank | ImageBank | None = None, base_bank: FeatureBank | None = None, *,
            method: Method | None = None, root=None, cache=None, source: FeatureSource | None = None,
            progress: bool = False, notes: tuple[str, ...] = ()) -> Resolved:
    """Find what `run` needs: the banks given or, without them, the data set, backbone and weights that it names; and its
    method, or the instance given. Raises FewshotError where these do not fit together."""
    run = run if method is None else _of_instance(run, method)
    if bank is None:
        from fewshot.pipeline import FeatureSource  # loads torchvision and timm: only where images are needed

        resolved = (source or FeatureSource(root, cache, progress)).resolve(run, method)
    else:
        method = method or create_method(run.method, **run.parameters)
        transform = None
        if method.inputs == "images":
            transform = getattr(getattr(method, "backbone", None), "transform", None)
        resolved = Resolved(_labelled(run, bank, base_bank), bank, base_bank, method, transform, notes)
    wanted = "images" if isinstance(resolved.bank, ImageBank) else "features"
    if resolved.method.inputs != wanted:
        raise FewshotError(f"{run.method} takes {resolved.method.inputs}, and the bank holds {wanted}; "
                           + ("give a data set, or a bank of images with a trained learner as method=" if wanted ==
                              "features" else "embed the images first (fewshot.embed)"))
    if resolved.method.needs_backbone:
        raise FewshotError(f"{run.method} with these parameters has weights of its own, which a bank does not bring along; "
                           "give the trained one as method=, or leave out bank= and name the weights file in the run")
    for name in ("transforms", "crops") if wanted == "images" else ():
        if getattr(run, name):
            raise FewshotError(f"{name}={getattr(run, name)!r} are for features; {run.method} takes images: leave them out")
    return resolved


def compare(a: Result, b: Result, confidence: float = 0.95) -> Comparison:
    """Paired difference a - b; raises FewshotError when the results are not on the same episodes."""
    if a.fingerprint != b.fingerprint:
        raise FewshotError(f"results are on different episodes ({a.run.protocol}, {a.run.episodes} episodes, seed "
                           f"{a.run.seed}, data {a.run.dataset} against {b.run.protocol}, {b.run.episodes}, {b.run.seed}, "
                           f"{b.run.dataset}); evaluate both with the same data, protocol, seed and episodes")
    return paired_difference(a.correct, b.correct, confidence)


def _of_instance(run: Run, method: Method) -> Run:
    """`run` with the name and hyper-parameters of a method that was given ready made, and the backbone that it holds."""
    settings = getattr(method, "settings", method)  # a learner keeps them apart
    name = next((name for name in METHODS if METHODS[name] is type(settings)), None)
    if name is not None:
        parameters = {key: getattr(settings, key) for key in method_parameters(name)}
        run = dataclasses.replace(run, method=name, parameters=parameters)
    held = getattr(method, "backbone", None)
    if hasattr(held, "weights_id"):
        run = dataclasses.replace(run, backbone=held.name, weights=held.weights_id)
    return run


def _labelled(run: Run, bank: FeatureBank | ImageBank, base_bank: FeatureBank | None) -> Run:
    """`run` with the identities of the banks it was given."""
    for name, given, kinds in (("bank", bank, (FeatureBank, ImageBank)), ("base_bank", base_bank, FeatureBank)):
        if given is not None and not isinstance(given, kinds):
            raise FewshotError(f"{name} is a {type(given).__name__}; pass a FeatureBank (fewshot.embed(images, backbone))")
    if base_bank is not None:
        if base_bank.split == "test" or base_bank.identity == bank.identity:
            raise FewshotError(f"base_bank holds split {base_bank.split!r} of {base_bank.name}; statistics come from base "
                               "classes (split 'train'), never from those that are evaluated")
        if base_bank.features.shape[1] != bank.features.shape[1]:
            raise FewshotError(f"base_bank has {base_bank.features.shape[1]} features an item, bank "
                               f"{bank.features.shape[1]}; extract both with the same backbone")
    if isinstance(bank, ImageBank):
        return dataclasses.replace(run, data=bank.content_hash, dataset=bank.name, split=bank.split)
    made_by = bank.provenance.get("backbone", "features" if run.backbone == Run.backbone else run.backbone)
    return dataclasses.replace(run, data=bank.content_hash, dataset=bank.name, split=bank.split, backbone=made_by,
                               weights=bank.provenance.get("weights_id", run.weights),
                               crops=bank.provenance.get("crops", ""),
                               base=base_bank.content_hash if base_bank is not None and run.needs_base else None)


def _required(base_bank: FeatureBank | None, method: Method) -> FeatureBank:
    if base_bank is None:
        raise FewshotError(f"{type(method).__name__} needs statistics of the base classes: pass base_bank=..., or choose "
                           "settings that do without (e.g. norm='l2n')")
    return base_bank
