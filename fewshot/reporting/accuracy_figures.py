"""Figures in one style: light, colour-blind safe (Okabe-Ito), readable without colour. No pyplot, no global state."""

from __future__ import annotations

import functools
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.registry import unknown_message
from fewshot.core.settings import settings_of
from fewshot.episodes.protocol import protocol_settings
from fewshot.evaluation.result import Result
from fewshot.reporting.naming import distinct_labels, in_protocol, natural, unique_results

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BLACK = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
                                                      "#F0E442", "#000000")
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)  # yellow is too pale for a line on white
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
GREY = "#5f6368"
P = ParamSpec("P")
# Names from data sets may hold `$`: mathematics in texts is off.
STYLE = {
    "backend": "agg", "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white",
    "font.family": ["DejaVu Sans"], "font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.labelsize": 10, "axes.labelcolor": "#202124", "axes.edgecolor": GREY, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "grid.color": "#e3e5e8", "grid.linewidth": 0.8, "text.color": "#202124", "text.parse_math": False,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": "#202124", "ytick.labelcolor": "#202124",
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 5.5,
    "errorbar.capsize": 3, "pdf.fonttype": 42, "svg.fonttype": "none",
}


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, also without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, dpi=100)


def axes_of_protocols() -> dict[str, str]:
    """Setting -> label of the axis, of what accuracy can be drawn against."""
    return {name: known.axis for name, known in protocol_settings().items() if known.axis}


def _in_titles() -> tuple[str, ...]:
    """What titles of panels name, so that labels need not."""
    return "dataset", "split", *in_protocol()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Build the figure under STYLE and leave matplotlib's settings as they were."""
    @functools.wraps(draw)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> Figure:
        settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
        with matplotlib.rc_context(settings):
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()  # ticks are made now, so a later draw does not need the style
        return figure

    return wrapper


def accuracy_against_shots(results: Iterable[Result]) -> Figure:
    """`accuracy_against` the number of shots."""
    return accuracy_against(results, "shots")


@styled
def accuracy_against(results: Iterable[Result], axis: str) -> Figure:
    """Accuracy with 95 % intervals over a setting of the protocol ("shots", "ways", "queries", "alpha"): a line per method
    (and backbone, seed, ... where they vary), a panel per data set and what else of the protocol varies.

    Raises FewshotError for no results, for another axis, and for results whose protocol has no use for it (alpha without
    Dirichlet queries).
    """
    titles = axes_of_protocols()
    if axis not in titles:
        raise FewshotError(unknown_message("axis", axis, list(titles)))
    results = unique_results(results)
    several = len({r.record.queries for r in results}) > 1 and axis != "queries"
    panels: dict[tuple[str, ...], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for label, result in zip(distinct_labels(results, (*_in_titles(), "queries")), results, strict=True):
        protocol = result.record.protocol
        if axis not in settings_of(protocol) or settings_of(protocol)[axis].unused(protocol):
            raise FewshotError(f"{label}, {protocol}: {axis} has no effect there; leave it out of a figure against {axis}")
        rest = protocol.text(without=axis) + (f", {result.record.queries} queries a class" if several else "")
        title = *_place(result, results), rest
        panels[title][label].append(result)
    labels = sorted({label for panel in panels.values() for label in panel}, key=natural)
    places = sorted({getattr(r.record, axis) for r in results})
    across, legend_columns = min(2, len(panels)), _legend_columns(labels)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(6.4, 3.1 * down + 0.5 + 0.2 * -(-len(labels) // legend_columns)), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    order = sorted(panels, key=lambda key: [natural(part) for part in key])
    for axes, key in zip(grid.flat, order, strict=False):
        for label, line in panels[key].items():
            line.sort(key=lambda r: getattr(r.record, axis))
            axes.errorbar([getattr(r.record, axis) for r in line], [100 * r.accuracy.mean for r in line],
                          [100 * r.accuracy.half_width for r in line], label=label, **_look(labels.index(label)))
        axes.set_title(", ".join(key))
        axes.set_xscale("log", base=2)  # the gain of a shot shrinks: 1 to 5 deserves more room than 16 to 20
        axes.set_xticks(places, [f"{value:g}" for value in places])
        axes.set_xticks([], minor=True)
        axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    drawn = list(grid.flat[:len(panels)])
    _chance_lines(drawn, results)
    for axes in drawn[-across:]:
        axes.set_xlabel(titles[axis])
        axes.tick_params(labelbottom=True)  # also above an empty place
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    handles = {label: handle for axes in grid.flat
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=legend_columns)
    return figure


@styled
def accuracy_dots(results: Iterable[Result]) -> Figure:
    """Accuracy with 95 % intervals, a panel per data set and protocol, sorted; open dots are transductive."""
    results = unique_results(results)
    panels: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        title = *_place(result, results), result.protocol
        panels[title].append(result)
    names = dict(zip((r.record.key for r in results), distinct_labels(results, _in_titles()), strict=True))
    order = sorted(panels, key=lambda key: [natural(part) for part in key])
    heights = [len(panels[key]) + 1.4 for key in order]
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(order), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, key in zip(grid, order, strict=True):
        panel = sorted(panels[key], key=lambda r: r.accuracy.mean)
        for y, result in enumerate(panel):
            accuracy = result.accuracy
            axes.errorbar(100 * accuracy.mean, y, xerr=100 * accuracy.half_width, fmt="o", color=BLUE,
                          markerfacecolor="white" if result.setting == "transductive" else BLUE)
        axes.set_yticks(range(len(panel)), shortened([names[r.record.key] for r in panel], 44))
        axes.set_ylim(-0.7, len(panel) - 0.3)
        axes.set_title(", ".join(key))
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.margins(x=0.08)
    grid[-1].set_xlabel("accuracy (%), 95 % interval over episodes")
    if len({r.setting for r in results}) > 1:
        marks = [Line2D([], [], marker="o", linestyle="", color=BLUE, markerfacecolor=fill, label=label)
                 for fill, label in ((BLUE, "inductive"), ("white", "transductive"))]
        figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return figure


@styled
def training_curve(history: Sequence[dict], smoothing: float = 0.9) -> Figure:
    """Training loss and validation accuracy over steps.

    history     rows with `step` and `loss`, and at some steps `validation_accuracy` and `validation_half_width`
                (fractions): history.json of a training run
    smoothing   weight of the past in the exponential mean of the loss (0 draws the raw values only)
    """
    if not history:
        raise FewshotError("an empty history; train for at least one step")
    if not 0 <= smoothing < 1:
        raise FewshotError(f"smoothing={smoothing}; it must be at least 0 and below 1")
    losses = [(row["step"], row["loss"]) for row in history if row.get("loss") is not None]
    checks = [(row["step"], 100 * row["validation_accuracy"], 100 * row["validation_half_width"])
              for row in history if row.get("validation_accuracy") is not None]
    figure = Figure(figsize=(6.4, 4.6 if losses and checks else 2.8), layout="constrained")
    grid = figure.subplots(bool(losses) + bool(checks), 1, sharex=True, squeeze=False)[:, 0]
    if losses:
        steps, values = np.array(losses, dtype=float).T
        grid[0].plot(steps, values, color=SKY, linewidth=0.8, alpha=0.8, label="loss")
        if smoothing:
            grid[0].plot(steps, _smooth(values, smoothing), color=BLUE, label=f"smoothed ({smoothing:g})")
        grid[0].set_ylabel("training loss")
        grid[0].legend(loc="upper right")
    if checks:
        steps, means, halves = np.array(checks, dtype=float).T
        best = int(means.argmax())
        grid[-1].fill_between(steps, means - halves, means + halves, color=GREEN, alpha=0.25, linewidth=0)
        grid[-1].plot(steps, means, color=GREEN, marker="o", markersize=3.5)
        grid[-1].plot(steps[best], means[best], marker="o", markersize=9, color=BLACK, fillstyle="none")
        grid[-1].set_ylabel("validation accuracy (%)")
        grid[-1].set_title(f"best {means[best]:.2f} ± {halves[best]:.2f} at step {steps[best]:.0f}")
    grid[-1].set_xlabel("step")
    return figure


def save_figure(figure: matplotlib.figure.Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `path`.png and `path`.pdf, each complete or absent; equal figures give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        place = path.with_name(f"{path.name}.{suffix}")
        write_atomically(place, figure_bytes(figure, suffix, metadata))
        written.append(place)
    return written[0], written[1]


def figure_bytes(figure: matplotlib.figure.Figure, suffix: str = "png", metadata: dict | None = None,
                 dpi: float = 200) -> bytes:
    """The figure as the content of a file, without the time at which it was made: equal figures give equal bytes."""
    buffer = io.BytesIO()
    if suffix == "pdf":
        metadata = {"CreationDate": None, **(metadata or {})}
    dpi = min(dpi, 60_000 / max(figure.get_size_inches()))  # Agg draws at most 65 536 pixels a side
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format=suffix, dpi=dpi, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _place(result: Result, results: list[Result]) -> tuple[str, ...]:
    """Data set and split, for a title, where they vary."""
    several = len({(r.data_name, r.record.split) for r in results}) > 1
    return (f"{result.data_name} ({result.record.split})",) if several else ()


def _look(i: int) -> dict:
    """Colour, marker and dash of line i; the pairs repeat after 28 lines."""
    dash, colour = divmod(i, len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[colour], "linestyle": LINES[dash % len(LINES)]}


def _legend_columns(labels: list[str]) -> int:
    """Legend columns that fit the width of a figure."""
    return max(1, min(4, len(labels), 84 // (max(map(len, labels)) + 7)))


def _chance_lines(panels: list[Axes], results: list[Result]) -> None:
    """Where chance is, unless that would take more than half of the axis."""
    ways, means = {r.record.ways for r in results}, [r.accuracy.mean for r in results]
    if len(ways) != 1 or not isinstance(way := ways.pop(), int) or 1 / way < 2 * min(means) - max(means):
        return
    for axes in panels:
        axes.axhline(100 / way, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("chance", (1, 100 / way), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                      textcoords="offset points", ha="right", color=GREY, fontsize=8.5)


def _smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential mean, corrected for its start, so that the first value is the first loss."""
    total, mass, smooth = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + value, weight * mass + 1
        smooth.append(total / mass)
    return np.array(smooth)


def shortened(texts: Sequence[str], width: int) -> list[str]:
    """The texts in at most `width` letters; those that begin alike are shown from where they differ, and whole where that
    does not tell them apart either, so that different texts stay different."""
    def cut(text: str) -> str:
        return text if len(text) <= width else text[: width - 1].rstrip() + "…"

    alike: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        alike[cut(text)].add(text)
    found = {}
    for beginning, group in alike.items():
        keep = width // 3
        common = os.path.commonprefix(list(group))
        skip = max(keep, common.rfind(", ") + 2 if ", " in common else len(common))  # from the first setting that differs
        for text in group:
            found[text] = beginning if len(group) == 1 else cut(f"{text[:keep].rstrip()}…{text[skip:]}")
    same = [text for text in found if list(found.values()).count(found[text]) > 1]
    return [text if text in same else found[text] for text in texts]
