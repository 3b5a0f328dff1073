"""Pictures of the feature space: an episode before and after refinement, and how a method moves its prototypes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.core.registry import unknown_message
from fewshot.episodes.types import Episodes
from fewshot.methods.contract import IterativeMethod, Method, Refinement
from fewshot.ops.distances import squared_euclidean
from fewshot.ops.prototypes import prototypes
from fewshot.reporting.accuracy_figures import BLACK, COLOURS, GREY, MARKERS, Figure, figure_bytes, shortened, styled
from fewshot.reporting.episode_figure import Labels

KINDS = ("pca", "tsne")


@dataclass(frozen=True, eq=False)
class _Scene:
    """One episode in two dimensions.

    support [S, 2], query [Q, 2] and path [T, N, 2], the prototypes after the numbers of steps in `steps` [T]; labels
    [S]; nearest [T, Q] class of the nearest prototype (in all dimensions), answers [Q] those of the method, truth [Q] or
    None; names [N]; axes: two labels.
    """

    support: np.ndarray
    query: np.ndarray
    path: np.ndarray
    steps: list[int]
    labels: np.ndarray
    nearest: np.ndarray
    answers: np.ndarray
    truth: np.ndarray | None
    names: list[str]
    axes: tuple[str, str]

    def score(self, predictions: np.ndarray) -> str:
        """`: 61.3 % correct`, or nothing where the truth is not known."""
        return "" if self.truth is None else f": {100 * (predictions == self.truth).mean():.1f} % correct"


@styled
def projection_figure(episode: Episodes, found: Refinement | Method, query_labels: Labels | None = None, kind: str = "pca",
                      class_names: Sequence[str] | None = None) -> Figure:
    """One episode before and after refinement, in two dimensions.

    episode       Episodes of one episode (E = 1) of features
    found         an iterative method, or its `refine(episode, history=True)`
    query_labels  [Q] or [1, Q] true classes: a query's marker and edge show its true class, its filling the predicted
                  one, and wrong ones carry a cross. None: marker and colour are those of the predicted class
    kind          "pca": the two main directions of support and queries, fitted to this episode. "tsne": neighbourhoods
                  are kept, distances between groups mean nothing
    class_names   one per class of the episode

    Left are the class means of the support and the queries' nearest mean, right the prototypes of the last step with
    their way there, and the method's own answers. All is drawn in the space the method works in (its normalisation
    included). Raises FewshotError for images, more than one episode, more than 7 classes, an unknown kind, and methods
    that keep no history of prototypes.
    """
    scene = _scene(episode, found, query_labels, kind, class_names, None if kind == "pca" else 2)
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    before, after = figure.subplots(1, 2, sharex=True, sharey=True)
    _draw(before, scene, 0, scene.nearest[0], 1.0)
    before.set_title("before, nearest class mean" + scene.score(scene.nearest[0]))
    _draw(after, scene, len(scene.steps) - 1, scene.answers, 1.0)
    after.set_title(f"after {_counted(scene.steps[-1])}" + scene.score(scene.answers))
    _finish(figure, scene)
    return figure


@styled
def movement_figure(episode: Episodes, found: Refinement | Method, query_labels: Labels | None = None, kind: str = "pca",
                    class_names: Sequence[str] | None = None, panels: int = 6) -> Figure:
    """How a method moves its prototypes: one panel a step, at most `panels`, the early steps closer together.

    Every panel fills the queries by their nearest prototype at that step, and its title counts how many of them are right.
    Where the method's answers are not those of its nearest prototype (a prior on the classes, a graph of the queries), a
    line below says how many of its own are right. Otherwise as `projection_figure`.
    """
    if panels < 2:
        raise FewshotError(f"panels={panels}; a movement needs at least 2")
    scene = _scene(episode, found, query_labels, kind, class_names, panels)
    across = 2 if len(scene.steps) == 4 else min(3, len(scene.steps))
    down = -(-len(scene.steps) // across)
    figure = Figure(figsize=(8.4, 2.75 * down + 0.8), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(scene.steps):]:
        axes.set_visible(False)
    for place, axes in enumerate(grid.flat[:len(scene.steps)]):
        _draw(axes, scene, place, scene.nearest[place], 0.75)
        axes.set_title(_step_title(scene, place))
    _finish(figure, scene, _answers_note(scene))
    return figure


def movement_animation(episode: Episodes, found: Refinement | Method, query_labels: Labels | None = None, kind: str = "pca",
                       class_names: Sequence[str] | None = None, frames: int = 24, milliseconds: int = 350) -> bytes:
    """`movement_figure` as an endless GIF of at most `frames` frames, as the content of a file; equal inputs give equal
    bytes. The last frame stays three times as long."""
    from PIL import Image

    if frames < 2 or milliseconds < 20:
        raise FewshotError(f"frames={frames}, milliseconds={milliseconds}; give at least 2 frames of 20 ms")
    scene = _scene(episode, found, query_labels, kind, class_names, frames)
    pictures = [Image.open(io.BytesIO(figure_bytes(_frame(scene, place), dpi=80))).convert("RGB")
                for place in range(len(scene.steps))]
    # One palette for all frames, or colours would flicker; the last frame has every colour that occurs.
    palette = pictures[-1].quantize(64)
    # The background must be white, not the mean of white and what is nearly so.
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[(colours > 247).all(1)] = 255
    palette.putpalette(colours.ravel().tolist())
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    content = io.BytesIO()
    first.save(content, "gif", save_all=True, append_images=rest, loop=0, disposal=1,
               duration=[milliseconds] * (len(pictures) - 1) + [3 * milliseconds])
    return content.getvalue()


@styled
def _frame(scene: _Scene, place: int) -> Figure:
    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    axes = figure.subplots()
    _draw(axes, scene, place, scene.nearest[place], 1.0)
    axes.set_title(_step_title(scene, place))
    _finish(figure, scene, _answers_note(scene))
    return figure


# -- what is drawn ---------------------------------------------------------------------------------------------------


def _scene(episode: Episodes, found: Refinement | Method, query_labels: Labels | None, kind: str,
           class_names: Sequence[str] | None, most: int | None) -> _Scene:
    """Check, refine, choose at most `most` steps (None: all), project."""
    if kind not in KINDS:
        raise FewshotError(unknown_message("kind", kind, list(KINDS)))
    if episode.support.ndim != 3:
        raise FewshotError(f"support has shape {tuple(episode.support.shape)}: these pictures are of features [E, S, D]; "
                           "embed the images first (`fewshot.embed` for a bank)")
    if len(episode) != 1:
        raise FewshotError(f"{len(episode)} episodes; a picture shows one, such as episodes[0]")
    if episode.ways > len(COLOURS):
        raise FewshotError(f"ways={episode.ways}; colours tell at most {len(COLOURS)} classes apart: draw fewer")
    logits, points, history = _refined(episode, found)
    names = [f"class {n}" for n in range(episode.ways)] if class_names is None else list(map(str, class_names))
    if len(names) != episode.ways:
        raise FewshotError(f"{len(names)} class names for {episode.ways} classes; give one per class of the episode")
    queries = episode.query.shape[1]
    truth = None if query_labels is None else np.asarray(torch.as_tensor(query_labels)).reshape(-1)
    if truth is not None and truth.shape != (queries,):
        raise FewshotError(f"{len(truth)} query labels for {queries} queries; give one for each")
    space = points.to(torch.float64)
    start, path = prototypes(space)[0], torch.cat([means.double() for means in history])  # [N, D], [T, N, D]
    if not torch.allclose(path[0], start, atol=1e-5 * float(start.abs().max())):
        path = torch.cat([start[None], path])
    steps = _chosen(len(path), most)
    path = path[steps]
    nearest = squared_euclidean(space.query, path.flatten(0, 1)[None])[0].unflatten(1, (len(steps), -1)).argmin(-1).T
    support, query, flat, axes = _project(space, path, kind)
    return _Scene(support, query, flat, steps, space.support_labels[0].numpy(), nearest.numpy(),
                  logits[0].argmax(-1).numpy(), truth, names, axes)


def _refined(episode: Episodes, found: Refinement | Method) -> tuple[Tensor, Episodes, list[Tensor]]:
    """(logits, the episode in the space of the prototypes, prototypes after every step) of what was given or is found."""
    name = type(found).__name__
    if isinstance(found, Method):
        if not isinstance(found, IterativeMethod):
            raise FewshotError(f"{name} does not refine anything: it has no steps to show; choose an iterative method such "
                               "as soft_kmeans or tim_adm")
        with torch.no_grad():
            found = found.refine(episode, history=True)
        if found.space is None:
            raise FewshotError(f"the prototypes of {name} are no points among the features, or it has none; choose a method "
                               "such as soft_kmeans or tim_adm")
    if not isinstance(found, Refinement):
        raise FewshotError(f"{name} given; pass an iterative method, or what its refine(episode, history=True) returns")
    if found.space is None or not found.history:
        raise FewshotError("this refinement has no history of prototypes; make it with refine(episode, history=True), by a "
                           "method whose prototypes are points among the features (soft_kmeans, tim_adm, ...)")
    if found.logits.shape != (1, episode.query.shape[1], episode.ways):
        raise FewshotError(f"the refinement has logits {list(found.logits.shape)}, the episode needs "
                           f"{[1, episode.query.shape[1], episode.ways]}; refine this episode alone")
    return found.logits, found.space, found.history


def _chosen(count: int, most: int | None) -> list[int]:
    """At most `most` of the steps 0 .. count-1, first and last among them; gaps grow, as early steps change the most."""
    if most is None or count <= most:
        return list(range(count))
    return sorted({round(step) - 1 for step in np.geomspace(1, count, most)})


def _project(space: Episodes, path: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, str]]:
    """support [S, 2], query [Q, 2], prototypes [T, N, 2] and the names of both axes."""
    points = torch.cat([space.support[0], space.query[0]]).numpy()
    shots, dim = space.support.shape[1], points.shape[1]
    if dim < 2 or len(points) < 4:
        raise FewshotError(f"{len(points)} points of {dim} features; a projection needs at least 4 points of 2 features")
    axes: tuple[str, str]
    if kind == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(2, svd_solver="full").fit(points)
        flat, moved = fitted.transform(points), fitted.transform(path.flatten(0, 1).numpy())
        shares = np.nan_to_num(fitted.explained_variance_ratio_)  # equal points have no variance to share
        first, second = (f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares))
        axes = first, second
    else:
        from sklearn.manifold import TSNE

        # t-SNE places nothing afterwards: the prototypes are embedded together with the points.
        every = np.concatenate([points, path.flatten(0, 1).numpy()])
        perplexity = min(30, (len(points) - 1) / 3)
        every = TSNE(2, perplexity=perplexity, init="random", random_state=0, method="exact").fit_transform(every)
        flat, moved, axes = every[:len(points)], every[len(points):], ("t-SNE 1", "t-SNE 2")
    return flat[:shots], flat[shots:], moved.reshape(*path.shape[:2], 2), axes


# -- drawing ---------------------------------------------------------------------------------------------------------


def _draw(axes: Axes, scene: _Scene, place: int, predictions: np.ndarray, size: float) -> None:
    """Support, queries filled by `predictions`, and the prototypes at `place` with their way there."""
    shown = predictions if scene.truth is None else scene.truth
    colours, look = np.array(COLOURS), {"linewidths": 1.7 * size, "zorder": 2}
    for n, colour in enumerate(COLOURS[:len(scene.names)]):
        own, items = shown == n, scene.labels == n
        _dots(axes, scene.query[own], s=46 * size, marker=MARKERS[n], edgecolors=colour, c=colours[predictions[own]],
              alpha=0.85, **look)
        _dots(axes, scene.support[items], s=150 * size, marker=MARKERS[n], edgecolors=colour, c="white", **look)
        axes.plot(*scene.path[:place + 1, n].T, color=BLACK, linewidth=1.1, zorder=3)
        _dots(axes, scene.path[place, n], s=170 * size, marker="*", edgecolors=BLACK, linewidths=0.9, c=colour, zorder=4)
        left = _goes_left(scene, place, n)
        axes.annotate(shortened(scene.names, 16)[n], scene.path[place, n], xytext=((-6 if left else 6) * size, 5 * size),
                      textcoords="offset points", ha="right" if left else "left", fontsize=10 * size**0.5,
                      fontweight="bold", zorder=5, path_effects=[withStroke(linewidth=2.5, foreground="white")])
    if scene.truth is not None:
        wrong = predictions != scene.truth
        _dots(axes, scene.query[wrong], s=16 * size, marker="x", c=BLACK, linewidths=1.1, zorder=2.5)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.09)


def _dots(axes: Axes, points: np.ndarray, **look: Any) -> None:
    """Markers at `points` [n, 2], or at one [2]."""
    axes.scatter(points[..., 0], points[..., 1], **look)


def _goes_left(scene: _Scene, place: int, n: int) -> bool:
    """Whether the name of a prototype stands on its left: where the right belongs to a close neighbour."""
    apart = np.delete(scene.path[place], n, 0) - scene.path[place, n]
    nearest = apart[np.linalg.norm(apart, axis=1).argmin()]
    return bool(nearest[0] > 0 and np.linalg.norm(nearest) < 0.2 * np.ptp(scene.query[:, 0]))


def _finish(figure: Figure, scene: _Scene, note: str = "") -> None:
    """Axis labels on the outer panels, the key of the markers, and the note above it."""
    for axes in figure.axes:
        axes.set_xlabel(scene.axes[0], fontsize=9)
        axes.set_ylabel(scene.axes[1], fontsize=9)
        axes.label_outer()

    def mark(marker: str, size: float, label: str, face: str = "white", edge: str = GREY) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=size, markerfacecolor=face, markeredgecolor=edge,
                      label=label)

    query = "query, by prediction" if scene.truth is None else "query: edge true, filling predicted class"
    keys = [mark("o", 11, "support"), mark("o", 5, query, face=GREY), mark("*", 13, "prototype", face=GREY, edge=BLACK)]
    if scene.truth is not None:
        keys.append(mark("x", 6, "wrong", edge=BLACK))
    figure.legend(handles=keys, loc="outside lower center", ncols=4 if figure.get_figwidth() > 6 else 2, title=note or None,
                  title_fontsize=9)


def _step_title(scene: _Scene, place: int) -> str:
    step = "class means" if scene.steps[place] == 0 else f"step {scene.steps[place]}"
    return step + scene.score(scene.nearest[place])


def _answers_note(scene: _Scene) -> str:
    differing = int((scene.answers != scene.nearest[-1]).sum())
    if not differing:
        return ""
    return f"own answers{scene.score(scene.answers)}, {differing} not the nearest prototype"


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
