"""Figures: what they draw is what the results say."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fewshot.core.errors import FewshotError
from fewshot.reporting.accuracy_figures import (
    GREEN,
    RED,
    accuracy_against,
    accuracy_against_shots,
    accuracy_dots,
    save_figure,
    shortened,
    training_curve,
)
from fewshot.reporting.episode_figure import episode_figure
from tests.reporting.test_tables import made


@pytest.fixture(autouse=True)
def matplotlib_settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_lines_over_shots_hold_the_means_and_the_half_widths():
    results = [made(0.05 * np.log2(k), k, method=m, shots=k) for m in ("protonet", "pt_map") for k in (5, 1, 20)]
    figure = accuracy_against_shots(results)
    bars = {c.get_label(): c for c in figure.axes[0].containers}
    assert set(bars) == {"protonet", "pt_map"}
    for method, container in bars.items():
        chosen = sorted((r for r in results if r.record.method == method), key=lambda r: r.record.shots)
        line, _, (segments,) = container
        np.testing.assert_allclose(line.get_xydata(), [[r.record.shots, 100 * r.accuracy.mean] for r in chosen])
        heights = [ends[1, 1] - ends[0, 1] for ends in segments.get_segments()]
        np.testing.assert_allclose(heights, [200 * r.accuracy.half_width for r in chosen])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "5", "20"]


def test_query_distributions_are_panels():
    results = [made(shots=k, query_distribution=d) for k in (1, 5) for d in ("balanced", "dirichlet")]
    figure = accuracy_against_shots(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["5-way", "5-way, Dirichlet(2)"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["protonet"]


@pytest.mark.parametrize(("axis", "values", "title"), [
    ("ways", (5, 10), "1-shot, Dirichlet(2)"), ("queries", (5, 15), "5-way 1-shot, Dirichlet(2)"),
    ("alpha", (0.5, 2.0, 10.0), "5-way 1-shot, Dirichlet")])
def test_lines_over_other_parts_of_the_protocol(axis, values, title):
    results = [made(0.01 * i, i, query_distribution="dirichlet", **{axis: value}) for i, value in enumerate(values)]
    figure = accuracy_against(results, axis)
    (container,) = figure.axes[0].containers
    np.testing.assert_allclose(container[0].get_xydata(), [[v, 100 * r.accuracy.mean]
                                                           for v, r in zip(values, results, strict=True)])
    assert figure.axes[0].get_title(loc="left") == title and container.get_label() == "protonet"


def test_other_axes_and_alpha_without_dirichlet_queries_are_refused():
    with pytest.raises(FewshotError, match="did you mean 'shots'"):
        accuracy_against([made()], "shot")
    with pytest.raises(FewshotError, match="5-way 1-shot: alpha has no effect there"):
        accuracy_against([made()], "alpha")
    titles = [a.get_title(loc="left") for a in accuracy_against([made(queries=q) for q in (5, 15)], "shots").axes]
    assert titles == ["5-way, 5 queries a class", "5-way, 15 queries a class"]


def test_dots_are_sorted_and_open_for_transductive_methods():
    results = [made(0.1, method="pt_map", setting="transductive"), made(0.2, method="protonet"),
               made(0.0, method="bd_cspn"), made(0.3, shots=5)]
    figure = accuracy_dots(results)
    first, second = figure.axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["bd_cspn", "pt_map", "protonet"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["protonet"]
    fills = [to_hex(container[0].get_markerfacecolor()) for container in first.containers]
    assert fills[1] == "#ffffff" and fills[0] == fills[2] != "#ffffff"
    means = [container[0].get_xdata()[0] for container in first.containers]
    np.testing.assert_allclose(means, sorted(100 * r.accuracy.mean for r in results[:3]))


def history(validation=True):
    rows = [{"step": s, "loss": 2.0 if s < 60 else 1.0, "validation_accuracy": None, "validation_half_width": None}
            for s in range(10, 110, 10)]
    if validation:
        rows[4].update(validation_accuracy=0.7, validation_half_width=0.02)
        rows[9].update(validation_accuracy=0.6, validation_half_width=0.01)
    return rows


def test_training_curve_smooths_the_loss_and_bands_the_validation_accuracy():
    figure = training_curve(history())
    loss, validation = figure.axes
    raw, smooth = (line.get_ydata() for line in loss.lines)
    assert list(raw) == [2.0] * 5 + [1.0] * 5
    np.testing.assert_allclose(smooth[:5], 2.0)
    weights = 0.9 ** np.arange(9, -1, -1)
    np.testing.assert_allclose(smooth[-1], weights @ raw / weights.sum())
    np.testing.assert_allclose(validation.lines[0].get_xydata(), [[50, 70], [100, 60]])
    assert {tuple(map(float, p.round(6))) for p in validation.collections[0].get_paths()[0].vertices} >= {
        (50, 68), (50, 72), (100, 59), (100, 61)}
    assert validation.get_title(loc="left") == "best 70.00 ± 2.00 at step 50"
    assert len(training_curve(history(validation=False)).axes) == 1
    with pytest.raises(FewshotError, match="empty history"):
        training_curve([])
    with pytest.raises(FewshotError, match="smoothing=1"):
        training_curve(history(), smoothing=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_episode_shows_every_image_and_marks_right_and_wrong(channels):
    generator = torch.Generator().manual_seed(0)
    support = torch.randint(0, 256, (5, channels, 8, 10), generator=generator, dtype=torch.uint8)
    query = torch.randint(0, 256, (6, channels, 8, 10), generator=generator, dtype=torch.uint8)
    support_labels, truth = torch.tensor([0, 1, 2, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 2])
    predicted = torch.tensor([0, 1, 1, 1, 2, 0])
    figure = episode_figure(support, support_labels, query, predicted, truth, ["cat", "$dog", "a_b$"])
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 11
    shown = {axes.images[0].get_array().tobytes() for axes in drawn}
    expected = torch.cat([support, query]).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    assert shown == {np.ascontiguousarray(image).tobytes() for image in expected}
    titles = {axes.get_title(loc="left"): axes for axes in drawn}
    assert sum(t.startswith("✓") for t in texts(figure)) == 4 and sum(t.startswith("✗") for t in texts(figure)) == 2
    frame = {t[0]: (to_hex(a.spines["left"].get_edgecolor()).upper(), a.spines["left"].get_linestyle())
             for t, a in titles.items() if t[:1] in ("✓", "✗")}
    assert frame["✓"][0] == GREEN and frame["✗"][0] == RED and frame["✓"][1] != frame["✗"][1]
    assert "Support (left) and queries: 4 of 6 correct" in texts(figure)
    # Rows are true classes: the query of class 0 taken for `$dog` stands beside the support of class 0.
    assert titles["✗ $dog"].get_position().y0 == titles["cat"].get_position().y0


def test_an_episode_without_labels_makes_no_claim_and_counts_what_it_leaves_out():
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    figure = episode_figure(images[:2], [0, 1], images, [0] * 8, max_queries=3)
    assert not any("✓" in t or "✗" in t for t in texts(figure))
    assert "Support (left), 8 queries by predicted class, 3 shown" in texts(figure)


def test_wrong_episode_inputs_are_named():
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(FewshotError, match="query has dtype float32"):
        episode_figure(images[:2], [0, 1], images.float(), [0, 1, 0, 1])
    with pytest.raises(FewshotError, match=r"predictions has shape \(3,\)"):
        episode_figure(images[:2], [0, 1], images, [0, 1, 0])
    with pytest.raises(FewshotError, match="1 class names for 2 classes"):
        episode_figure(images[:2], [0, 1], images, [0, 1, 0, 1], class_names=["cat"])


@pytest.mark.slow
def test_saving_writes_png_and_pdf_that_do_not_change_from_run_to_run(tmp_path):
    results = [made(shots=k) for k in (1, 5)]
    first = save_figure(accuracy_against_shots(results), tmp_path / "new" / "v1.2")
    second = save_figure(accuracy_against_shots(results), tmp_path / "again")
    assert [p.name for p in first] == ["v1.2.png", "v1.2.pdf"]
    assert first[0].read_bytes().startswith(b"\x89PNG") and first[1].read_bytes().startswith(b"%PDF")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "plot.png").write_bytes(b"old")

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("fewshot.core.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_figure(Figure(), tmp_path / "plot")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("plot.png", b"old")]


def test_different_labels_stay_different_when_they_are_cut():
    head = "a label of many words which all results begin with, "
    texts = [head + "seed 1", head + "seed 2", "short", head + "seed 1"]
    found = shortened(texts, 30)
    assert [text[-6:] for text in found] == ["seed 1", "seed 2", "short", "seed 1"]
    assert max(map(len, found)) <= 30
    assert shortened(["x" * 40, "y" * 40], 10) == ["x" * 9 + "…", "y" * 9 + "…"]
    both = ["a" * 40 + "b" + "c" * 60 + end for end in "12"] + ["a" * 40 + "d"]
    assert len(set(shortened(both, 12))) == 3  # two differ at the end, of the third they differ before
    assert shortened(["one", "two"], 12) == ["one", "two"]
