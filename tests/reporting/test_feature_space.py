"""Pictures of the feature space: what they draw and claim is what the method did."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from fewshot.contract.synthetic import random_episodes
from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes
from fewshot.methods import create_method
from fewshot.reporting.accuracy_figures import COLOURS, figure_bytes
from fewshot.reporting.feature_space import movement_animation, movement_figure, projection_figure

NAMES = ["ant", "$bee_", "cat", "dog", "elk"]


def episode(shots=1, **options):
    return random_episodes(episodes=1, shots=shots, queries=25, dim=8, spread=0.9, seed=1, with_labels=True, **options)


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def drawn(axes, marker_size):
    """Collections of at least this size whose centres are drawn points."""
    return [c for c in axes.collections if len(c.get_offsets()) and c.get_sizes()[0] == marker_size]


def nearest(space, prototypes):
    return torch.cdist(space.query, prototypes).argmin(-1)


def test_before_and_after_count_what_is_right_and_place_points_by_pca():
    episodes, labels = episode()
    method = create_method("soft_kmeans")
    found = method.refine(episodes, history=True)
    figure = projection_figure(episodes, method, labels, class_names=NAMES)
    right = [100 * (guess == labels).double().mean() for guess in (nearest(found.space, found.history[0]),
                                                                   found.logits.argmax(-1))]
    assert right[0] != right[1], "an episode without any change would test nothing"
    steps = len(found.history) - 1
    assert titles(figure) == [f"before, nearest class mean: {right[0]:.1f} % correct",
                              f"after {steps} steps: {right[1]:.1f} % correct"]
    assert texts(figure).count("$bee_") == 2
    points = torch.cat([found.space.support, found.space.query], 1)[0].numpy()
    centred = points - points.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    after = figure.axes[1]
    # The sign of an axis is arbitrary.
    shown = np.concatenate([c.get_offsets() for c in drawn(after, 46)])
    expected = (found.space.query[0].numpy() - points.mean(0)) @ axes.T
    np.testing.assert_allclose(np.sort(np.abs(shown), 0), np.sort(np.abs(expected), 0), atol=1e-9)
    stars = np.concatenate([c.get_offsets() for c in drawn(after, 170)])
    last = (found.history[-1][0].numpy() - points.mean(0)) @ axes.T
    np.testing.assert_allclose(np.abs(stars), np.abs(last), atol=1e-9)


def test_colours_tell_truth_and_prediction():
    episodes, labels = episode()
    method = create_method("soft_kmeans")
    answers = method(episodes).argmax(-1)[0]
    after = projection_figure(episodes, method, labels).axes[1]
    queries = drawn(after, 46)
    assert [to_hex(c.get_edgecolors()[0]).upper() for c in queries] == list(COLOURS[:5])
    for n, collection in enumerate(queries):
        filled = [to_hex(colour).upper() for colour in collection.get_facecolors()]
        assert filled == [COLOURS[guess] for guess in answers[labels[0] == n]]
    assert len(drawn(after, 16)[0].get_offsets()) == int((answers != labels[0]).sum())


def test_without_labels_nothing_is_called_right():
    figure = projection_figure(episode()[0], create_method("soft_kmeans"))
    assert not any("correct" in text or "wrong" in text for text in texts(figure))


@pytest.mark.parametrize("name", ["soft_kmeans", "hct_adapt", "paddle"])
def test_every_panel_of_the_movement_counts_its_own_step(name):
    episodes, labels = episode()
    found = create_method(name).refine(episodes, history=True)
    path = [torch.stack([found.space.support[0][found.space.support_labels[0] == n].mean(0) for n in range(5)])[None],
            *found.history]
    path = path[1:] if torch.allclose(path[0], path[1]) else path  # some histories begin with the class means
    shown = titles(movement_figure(episodes, found, labels, panels=5))
    steps = [0 if title.startswith("class means") else int(title.split()[1].strip(":")) for title in shown]
    assert steps[0] == 0 and steps[-1] == len(path) - 1 and steps == sorted(set(steps)) and 3 <= len(steps) <= 5
    for step, title in zip(steps, shown, strict=True):
        right = 100 * (nearest(found.space, path[step]) == labels).double().mean()
        assert title.endswith(f": {right:.1f} % correct")


def test_answers_that_are_not_the_nearest_prototype_are_told():
    """PADDLE's prior on the classes moves answers away from the nearest prototype."""
    episodes, labels = episode()
    method = create_method("paddle", prior_weight=25.0)
    found = method.refine(episodes, history=True)
    differing = int((found.logits.argmax(-1) != nearest(found.space, found.history[-1])).sum())
    right = 100 * (found.logits.argmax(-1) == labels).double().mean()
    note = f"own answers: {right:.1f} % correct, {differing} not the nearest prototype"
    assert differing and note in texts(movement_figure(episodes, method, labels, panels=2))


def test_tsne_is_the_same_every_time():
    episodes, labels = episode()
    first, second = (figure_bytes(projection_figure(episodes, create_method("soft_kmeans"), labels, "tsne"), dpi=40)
                     for _ in range(2))
    assert first == second


def test_the_animation_is_small_endless_and_the_same_every_time():
    episodes, labels = episode()
    first, second = (movement_animation(episodes, create_method("soft_kmeans"), labels, frames=3) for _ in range(2))
    assert first == second and len(first) < 100_000
    film = Image.open(io.BytesIO(first))
    assert film.n_frames == 3 and film.info["loop"] == 0 and film.size == (400, 368)
    assert film.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize(("name", "message"), [
    ("protonet", "ProtoNet does not refine anything"), ("logistic_regression", "the prototypes of LogisticRegression"),
    ("em_dirichlet", "the prototypes of EMDirichlet are no points among the features")])
def test_methods_without_prototypes_are_named(name, message):
    with pytest.raises(FewshotError, match=message):
        movement_figure(episode()[0], create_method(name))


def test_other_mistakes_are_named():
    episodes, labels = episode()
    method = create_method("soft_kmeans")
    images = Episodes(torch.zeros(1, 2, 3, 8, 8), torch.tensor([[0, 1]]), torch.zeros(1, 2, 3, 8, 8), 2)
    wrong = [((images, method), "pictures are of features"), ((episodes, method, labels[:, 1:]), "24 query labels for 25"),
             ((random_episodes(), method), "3 episodes; a picture shows one"), ((episodes, "soft_kmeans"), "str given"),
             ((random_episodes(episodes=1, ways=8), method), "ways=8; colours tell at most 7"),
             ((episodes, method, labels, "umap"), "unknown kind 'umap'"),
             ((episodes, method, labels, "pca", NAMES[:2]), "2 class names for 5 classes"),
             ((episodes, method.refine(episodes)), "no history of prototypes"),
             ((episodes, method.refine(random_episodes(queries=25, dim=8), history=True)), "refine this episode alone")]
    for arguments, message in wrong:
        with pytest.raises(FewshotError, match=message):
            projection_figure(*arguments)
    with pytest.raises(FewshotError, match="panels=1"):
        movement_figure(episodes, method, panels=1)
    with pytest.raises(FewshotError, match="frames=1"):
        movement_animation(episodes, method, frames=1)
