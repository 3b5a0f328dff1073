"""Figures of a report that need more than accuracies: sweeps, confusion, calibration, and episodes as images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import Normalize, PowerNorm
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.settings import settings_of
from fewshot.data.banks import FeatureBank, ImageBank
from fewshot.datasets import DATASETS
from fewshot.episodes.sampler import EpisodeIndices
from fewshot.episodes.types import Episodes
from fewshot.evaluation.batching import answers
from fewshot.evaluation.measures import BINS, calibration_error
from fewshot.evaluation.record import Record
from fewshot.evaluation.resolve import ready, resolve
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.features.source import FeatureSource, backbone_for
from fewshot.features.subject import Subject
from fewshot.methods.contract import IterativeMethod, Method
from fewshot.reporting.accuracy_figures import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    Figure,
    accuracy_against,
    axes_of_protocols,
    styled,
)
from fewshot.reporting.episode_figure import episode_figure
from fewshot.reporting.feature_space import movement_figure, projection_figure
from fewshot.reporting.naming import unique_results

LARGEST = 30  # classes of a confusion matrix that can still be read
_NUMBERS = 12  # ... with a number in every cell


def sweeps(results: Iterable[Result]) -> dict[str, tuple[Figure, str]]:
    """axis -> (accuracy against it, caption), for every axis along which results differ in nothing else of the protocol."""
    found = {}
    for axis in axes_of_protocols():
        lines: dict[tuple, list[Result]] = defaultdict(list)
        for result in unique_results(results):
            protocol, record = result.record.protocol, result.record
            known = settings_of(protocol)
            if axis in known and not known[axis].unused(protocol):
                others = [str(value) for name, value in protocol.settings().items() if name != axis]
                line = result.data_name, record.split, record.backbone, record.method, *others
                lines[line].append(result)
        swept = [r for line in lines.values() if len({getattr(r.record, axis) for r in line}) > 1 for r in line]
        if swept:
            found[axis] = accuracy_against(swept, axis), (f"Accuracy against {axis}. 95 % intervals over episodes; the "
                                                          "horizontal axis is logarithmic.")
    return found


@styled
def confusion_figure(confusion: Tensor, class_names: Sequence[str] | None = None) -> Figure:
    """Share of the queries of each class (row) that were given each class (column), as a shaded matrix: mistakes in blue,
    right answers in grey.

    confusion [C, C] counts, row: true, column: predicted. Of more than LARGEST classes those with the largest share of wrong
    answers are drawn. Raises FewshotError without queries and for another number of names than classes.
    """
    names, share = _names(confusion, class_names), _share(confusion)
    wrong = 1 - np.diag(share)
    asked = np.flatnonzero(~np.isnan(wrong))
    shown = np.sort(asked[np.argsort(-wrong[asked], kind="stable")[:LARGEST]])
    cells = share[np.ix_(shown, shown)]
    labels = [_middle(names[i], 22) for i in shown]
    n, text = len(shown), 0.085 * max(map(len, labels)) + 0.3
    cell = 0.5 if n <= _NUMBERS else max(0.17, 6 / n - 0.03)
    figure = Figure(figsize=(max(4.6, n * cell + text + 1.6), n * cell + text + 0.7), layout="constrained")
    axes = figure.subplots()
    # Right answers, most of them, would leave no shade for the mistakes: they are grey, and mistakes have a root scale of
    # their own, on which a class taken for many others in a few percent each is still seen.
    right = np.eye(n, dtype=bool)
    largest = max(float(np.where(right, 0, cells).max()), 0.01)
    image = axes.imshow(cells, cmap="Blues", norm=PowerNorm(0.5, 0, largest), interpolation="nearest")
    axes.imshow(np.ma.masked_where(~right, cells), cmap="Greys", norm=Normalize(0, 1.6), interpolation="nearest")
    axes.grid(False)
    size = 9 if n <= 20 else 7.5
    axes.set_xticks(range(n), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    if n <= _NUMBERS:
        for i, j in np.ndindex(n, n):
            axes.text(j, i, f"{100 * cells[i, j]:.0f}", ha="center", va="center", fontsize=8.5,
                      color="white" if i != j and cells[i, j] > 0.4 * largest else "#202124")
    few = f"the {n} of {len(asked)} classes with the most wrong answers" if n < len(asked) else f"all {n} classes"
    axes.set_title(f"queries of a class by answer, {few}", loc="left")
    ticks = (0, largest / 16, largest / 4, largest)
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 2.5 / (n * cell)), ticks=ticks)
    bar.ax.set_yticklabels([f"{100 * tick:.2g} %" for tick in ticks])
    bar.set_label("wrong answers (right ones are grey)", fontsize=size)
    bar.outline.set_visible(False)
    return figure


def confused_pairs(confusion: Tensor, class_names: Sequence[str] | None = None, most: int = 5) -> list[str]:
    """`A taken for B (12.0 % of 150 queries)` for the largest shares of wrong answers; [] where all is right."""
    names, share = _names(confusion, class_names), np.nan_to_num(_share(confusion))
    np.fill_diagonal(share, 0)
    places = np.argsort(-share, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, share.shape) for place in places]
    return [f"{names[i]} taken for {names[j]} ({100 * share[i, j]:.1f} % of {int(confusion[i].sum())} queries)"
            for i, j in pairs if share[i, j] > 0]


@styled
def calibration_figure(histograms: Mapping[str, Tensor]) -> Figure:
    """Reliability diagrams (DeGroot and Fienberg 1983; Guo et al. 2017): accuracy against confidence in 15 bins, and how
    many queries each bin holds. histograms: title -> counts [3, BINS] of `measures["calibration"]`."""
    across = len(histograms)
    figure = Figure(figsize=(3.3 * across + (0.9 if across == 1 else 0.1), 4.2), layout="constrained")
    upper, lower = figure.subplots(2, across, sharex=True, sharey="row", squeeze=False,
                                   gridspec_kw={"height_ratios": (3, 1)})
    edges = np.arange(BINS) / BINS
    for top, bottom, (title, histogram) in zip(upper, lower, histograms.items(), strict=True):
        count, right, confidence = histogram.double().numpy()
        held = count > 0
        accuracy, mean = right[held] / count[held], confidence[held] / count[held]
        top.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        top.bar(edges[held], accuracy, 1 / BINS, align="edge", color=BLUE, alpha=0.3, edgecolor="white", linewidth=0.6)
        top.vlines(mean, np.minimum(accuracy, mean), np.maximum(accuracy, mean), color=ORANGE, linewidth=2)
        top.plot(mean, accuracy, marker="o", linestyle="", color=BLUE, markersize=4.5)
        top.set(xlim=(0, 1), ylim=(0, 1.02))
        top.set_title(f"{title}\nECE {100 * calibration_error(histogram):.2f} %, n = {int(count.sum()):,}")
        bottom.bar(edges, count, 1 / BINS, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        bottom.set_yscale("log")  # most queries are in the last bin
        bottom.yaxis.set_major_formatter("{x:,.0f}")  # the style draws no mathematics, so 10^4 would be its source
        bottom.set_ylim(0.7, None)
        bottom.set_xlabel("confidence")
        bottom.set_xticks(np.arange(0, 1.01, 0.2))
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("queries")
    return figure


def evaluated_images(record: Record, source: FeatureSource) -> ImageBank:
    """The images of `record`; raises FewshotError, saying why, where they are not at hand."""
    if record.dataset not in DATASETS:
        raise FewshotError(f"{record.dataset} is no data set of `fewshot data`")
    images = source.images(Subject(record.dataset, record.split, data_options=record.data_options))
    if images.content_hash != record.data:
        raise FewshotError(f"the images of {record.dataset} found here are not those evaluated, or features were evaluated")
    return images


def drawn_episodes(result: Result, source: FeatureSource,
                   weights: Mapping[str, Path] | None = None) -> list[tuple[str, Figure, str]]:
    """(name, figure, caption) of the hardest episode and of a random one, drawn and answered again.

    weights   identity -> file of weights at hand. Raises FewshotError, saying why, where the images, weights or episodes of
    the result are not at hand.
    """
    record = result.record
    if record.episode_list:
        raise FewshotError("its episodes came from a file")
    images = evaluated_images(record, source)
    run = Run.from_record(record)
    method, prepare, bank = _answering(run, record, images, source, weights or {})
    if run.drawn(bank).fingerprint != result.fingerprint:
        raise FewshotError("this version draws other episodes than the one that evaluated it")
    sampler, picks = run.sampler(bank), {"hardest": int(result.correct.argmin())}
    picks["random"] = int(record.key, 16) % len(result.correct)  # the same in every report
    drawn = []
    for name, i in picks.items():
        indices = sampler.indices(i, 1)
        with torch.inference_mode():
            predicted = next(answers(method, iter([prepare(indices.gather(bank))])))[0][0].argmax(-1)
        known = indices.query_labels[0] >= 0
        labels, found = indices.query_labels[0][known], predicted[known]
        figure = episode_figure(images.take(indices.support[0]), indices.support_labels[0],
                                images.take(indices.query[0][known]), found, labels,
                                [images.class_names[c] for c in indices.classes[0]])
        right, stored = float((labels == found).double().mean()), float(result.correct[i])
        title = "The hardest episode" if name == "hardest" else "A random episode"
        caption = f"{title}, number {i} of {len(result.correct)}: {100 * stored:.1f} % of {len(labels)} queries are right."
        if abs(right - stored) > 1e-9:
            caption += f" Answered again, {100 * right:.1f} %: rounding differs between software or batch sizes."
        drawn.append((f"{name} episode", figure, caption))
        if name == "hardest":
            drawn += _in_feature_space(method, prepare(indices.gather(bank)), indices, images)
    return drawn


def _in_feature_space(method: Method, episode: Episodes, indices: EpisodeIndices,
                      images: ImageBank) -> list[tuple[str, Figure, str]]:
    """Before and after refinement, and the way of the prototypes, for a method that has them."""
    if not isinstance(method, IterativeMethod) or episode.ways > len(COLOURS) or (indices.query_labels < 0).any():
        return []
    with torch.inference_mode():
        found = method.refine(episode, history=True)
    if found.space is None or not found.history:
        return []
    names = [images.class_names[c] for c in indices.classes[0]]
    return [("feature space before and after", projection_figure(episode, found, indices.query_labels, class_names=names),
             "The hardest episode in the space the method works in, on the two main directions of its points."),
            ("way of the prototypes", movement_figure(episode, found, indices.query_labels, class_names=names),
             "The same step by step.")]


def _answering(run: Run, record: Record, images: ImageBank, source: FeatureSource,
               weights: Mapping[str, Path]) -> tuple[Method, Callable[[Episodes], Episodes], FeatureBank | ImageBank]:
    identity = (record.weights or "none").split("+")[0]
    file = weights.get(record.weights, weights.get(identity))
    named = identity == "none" or identity.startswith("random:")
    found = run.changed(weights=str(file) if file else identity if named else None)
    if backbone_for(found.subject, images).weights_id != identity:
        raise FewshotError(f"its weights ({identity[:12]}) are not at hand; name their file with --weights")
    resolved = resolve(found, source=source)
    if resolved.record.weights != record.weights:
        raise FewshotError(f"the weights of {record.method} itself are not at hand; name their file with --weights")
    method, prepare, _ = ready(resolved)
    return method, prepare, resolved.bank


def _names(confusion: Tensor, class_names: Sequence[str] | None) -> list[str]:
    names = [f"class {i}" for i in range(len(confusion))] if class_names is None else list(class_names)
    if len(names) != len(confusion):
        raise FewshotError(f"{len(names)} class names for a confusion matrix of {len(confusion)} classes; give one each")
    return names


def _middle(text: str, width: int) -> str:
    """Shortened in the middle: names of classes often begin alike."""
    return text if len(text) <= width else f"{text[:width // 2 - 3]}…{text[-(width - width // 2 + 2):]}"


def _share(confusion: Tensor) -> np.ndarray:
    """[C, C] share of the queries of the row; NaN in the rows without queries."""
    total = confusion.sum(1, keepdim=True)
    if not total.any():
        raise FewshotError("a confusion matrix without queries; evaluate with metrics=True")
    return torch.where(total > 0, confusion / total, float("nan")).double().numpy()
