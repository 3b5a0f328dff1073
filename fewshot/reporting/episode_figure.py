"""An episode as a picture: the support and the queries of each class, with what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.reporting.accuracy_figures import GREEN, RED, Figure, shortened, styled

Images = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence[int]


@styled
def episode_figure(support: Images, support_labels: Labels, query: Images, predictions: Labels,
                   query_labels: Labels | None = None, class_names: Sequence[str] | None = None, max_shots: int = 5,
                   max_queries: int = 6) -> Figure:
    """One episode: a row per class with its support on the left and queries on the right.

    support      [S, C, H, W] uint8, C = 1 or 3;  support_labels [S];  query [Q, C, H, W];  predictions [Q]
    query_labels [Q] true classes: queries stand in the row of their true class, a solid green frame and a tick mark a
                 right prediction, a dashed red frame and a cross a wrong one. None: they stand in the predicted row.
    class_names  one per class of the episode

    At most `max_shots` and `max_queries` images a row are drawn; the title says so. Raises FewshotError on wrong
    shapes.
    """
    support, query = _images("support", support), _images("query", query)
    support_labels, predictions = (np.asarray(torch.as_tensor(x)) for x in (support_labels, predictions))
    truth = predictions if query_labels is None else np.asarray(torch.as_tensor(query_labels))
    for name, values, images in (("support_labels", support_labels, support), ("predictions", predictions, query),
                                 ("query_labels", truth, query)):
        if values.shape != (len(images),):
            raise FewshotError(f"{name} has shape {values.shape}; expected ({len(images)},), one for each image")
    ways = int(max(support_labels.max(), predictions.max(), truth.max())) + 1
    names = [f"class {n}" for n in range(ways)] if class_names is None else list(map(str, class_names))
    if len(names) < ways:
        raise FewshotError(f"{len(names)} class names for {ways} classes; give one per class of the episode")
    rows = [(np.flatnonzero(support_labels == n)[:max_shots], np.flatnonzero(truth == n)[:max_queries])
            for n in range(ways)]
    shots, most = max(len(given) for given, _ in rows), max(len(asked) for _, asked in rows)
    cell, gap, head = 1.08, 0.3, 0.3  # inches; laid out by hand, so that long names do not push the images apart
    width, height = max(4.4, cell * (shots + most) + gap + 0.1), ways * (cell + 0.16) + head
    figure = Figure(figsize=(width, height))

    def draw(image: np.ndarray, row: int, left: float) -> Axes:
        bottom = height - head - (row + 1) * (cell + 0.16) + 0.05
        axes = figure.add_axes((left / width, bottom / height, 0.98 / width, 0.98 / height))
        axes.imshow(image, interpolation="nearest")
        axes.grid(False)
        axes.set(xticks=[], yticks=[], anchor="SW")
        _frame(axes, "#c8ccd1", "-", 0.8)
        return axes

    for n, (given, asked) in enumerate(rows):
        for place, i in enumerate(given):
            axes = draw(support[i], n, 0.05 + place * cell)
            if place == 0:
                axes.set_title(shortened(names, 14 * shots)[n], fontsize=8.5, fontweight="bold", pad=3)
        for place, i in enumerate(asked):
            axes = draw(query[i], n, 0.05 + gap + (shots + place) * cell)
            named = shortened(names, 14)[predictions[i]]
            if query_labels is None:
                axes.set_title(named, fontsize=8, pad=4)
                continue
            right = predictions[i] == truth[i]
            mark, dark = ("✓", "#00664b") if right else ("✗", "#a84300")
            axes.set_title(f"{mark} {named}", fontsize=8, color=dark, pad=4)
            _frame(axes, GREEN if right else RED, "-" if right else (0, (2.5, 1.5)), 2.4)
    drawn = sum(len(asked) for _, asked in rows)
    shown = f", {drawn} shown" if drawn < len(query) else ""
    count = f" and queries: {(truth == predictions).sum()} of {len(query)} correct"
    count = f", {len(query)} queries by predicted class" if query_labels is None else count
    figure.text(0.05 / width, 1 - 0.05 / height, f"Support (left){count}{shown}", va="top")
    return figure


def _images(name: str, images: Images) -> np.ndarray:
    """[n, C, H, W] uint8 -> [n, H, W, 3]."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8 or len(images) == 0:
        raise FewshotError(f"{name} has dtype {images.dtype} and shape {images.shape}; expected uint8 [n, C, H, W] "
                           "with C = 1 or 3 and at least one image")
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)


def _frame(axes: Axes, colour: str, dash: str | tuple[float, tuple[float, float]], width: float) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=width, linestyle=dash)
