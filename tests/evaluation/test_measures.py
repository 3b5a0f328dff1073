"""Measures beside accuracy: by hand, against scikit-learn, and as `evaluate` collects and stores them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn import metrics

from fewshot.core.errors import FewshotError
from fewshot.data.banks import FeatureBank
from fewshot.evaluation.calibration import fit_temperature
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.measures import (
    Measures,
    calibration_error,
    class_counts,
    macro_accuracy,
    open_set_measures,
    probability_measures,
)
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from tests.evaluation.test_evaluate import RUN, toy_bank


def drawn(episodes=6, queries=20, ways=4, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(ways, (episodes, queries), generator=generator)
    logits = torch.randn(episodes, queries, ways, generator=generator, dtype=torch.float64)
    return scale * (logits + torch.nn.functional.one_hot(labels, ways)), labels


def test_probability_measures_against_scikit_learn_and_a_loop():
    logits, labels = drawn()
    found = probability_measures(logits, labels, temperature=1.7)
    p = torch.softmax(logits / 1.7, -1)
    for e in range(len(logits)):
        assert float(found["nll"][e]) == pytest.approx(metrics.log_loss(labels[e], p[e], labels=range(4)))
        wanted = ((p[e] - torch.nn.functional.one_hot(labels[e], 4)) ** 2).sum(-1).mean()
        assert float(found["brier"][e]) == pytest.approx(float(wanted))
    confidence, predicted = p.max(-1)
    error = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    assert calibration_error(found["calibration"].sum(0).view(3, 15)) == pytest.approx(error)


def test_class_counts_and_macro_accuracy():
    labels, predicted = torch.tensor([[0, 0, 0, 2, -1]]), torch.tensor([[0, 0, 1, 2, 2]])
    found = class_counts(predicted, labels, torch.tensor([[7, 5, 9]]), pool=10)
    assert found["class_total"].tolist() == [[3, 0, 1]] and found["class_correct"].tolist() == [[2, 0, 1]]
    assert macro_accuracy(found["class_correct"], found["class_total"]).tolist() == [pytest.approx((2 / 3 + 1) / 2)]


def test_open_set_measures_against_scikit_learn():
    logits, labels = drawn(8, 30)
    logits = logits.round()  # ties
    labels[:, ::3] = -1
    found = open_set_measures(logits, labels)
    for e in range(len(logits)):
        for name, score in (("logit", logits[e].amax(-1)), ("probability", torch.softmax(logits[e], -1).amax(-1))):
            opened = (labels[e] < 0).numpy()
            assert float(found[f"auroc_{name}"][e]) == pytest.approx(metrics.roc_auc_score(~opened, score))
            assert float(found[f"aupr_{name}"][e]) == pytest.approx(metrics.average_precision_score(opened, -score))
    perfect = torch.where(labels[..., None] < 0, 0.0, 9.0 * torch.nn.functional.one_hot(labels.clamp(min=0), 4))
    assert all((values == 1).all() for values in open_set_measures(perfect, labels).values())


def test_a_temperature_is_recovered():
    """Labels drawn from softmax(logits / 2.5)."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits / 2.5, -1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)
    with pytest.raises(FewshotError, match="no temperature"):
        fit_temperature(logits, logits.argmax(-1))


def test_per_class_counts_are_kept_and_stored(tmp_path):
    store = Store(tmp_path)
    result = evaluate(RUN, toy_bank(), store=store)
    counts = result.measures
    assert counts["classes"].shape == (200, 5) and counts["classes"].dtype == torch.int16
    assert torch.equal(counts["class_correct"].sum(1).double() / counts["class_total"].sum(1), result.correct)
    assert (counts["class_total"] == 15).all() and "nll" not in counts
    stored = next(iter(store))
    assert stored.over_classes == result.over_classes and stored.over_classes.half_width > 3 * result.accuracy.half_width
    assert stored.summary()["macro_accuracy"] == pytest.approx(stored.accuracy.mean)


def test_results_stored_before_there_were_measures_still_load(tmp_path):
    result = evaluate(RUN, toy_bank())
    old = Result(result.run, result.correct, result.fingerprint, 1.0)
    Store(tmp_path).save(old)
    found = Store(tmp_path).load(result.run)
    assert found.measures == {} and found.accuracy == result.accuracy
    with pytest.raises(FewshotError, match="evaluate again"):
        found.over_classes  # noqa: B018


def test_metrics_are_measured_when_asked_for_also_where_a_result_is_stored_without(tmp_path):
    store, bank = Store(tmp_path), toy_bank()
    plain = evaluate(RUN, bank, store=store)
    result = evaluate(RUN, bank, store=store, metrics=True)
    assert torch.equal(plain.correct, result.correct) and plain.run.key == result.run.key
    found = evaluate(RUN, bank, store=store)
    assert found.seconds == result.seconds and found.measures["nll"].shape == (200,), "the richer result is kept"
    confusion = found.measures["confusion"]
    assert confusion.shape == (12, 12) and confusion.sum() == 200 * 75
    assert float(confusion.diagonal().sum()) / confusion.sum() == pytest.approx(result.accuracy.mean)
    summary = found.summary()
    assert summary["nll"] == pytest.approx(float(found.measures["nll"].mean()))
    assert 0 < summary["calibration_error"] < 1 and "confusion" not in summary


def test_calibration_is_fitted_on_validation_classes_and_helps_on_others():
    val = dataclasses.replace(toy_bank(seed=5), split="val")
    result = evaluate(RUN, toy_bank(), calibrate=val)
    summary = result.summary()
    assert summary["temperature"] > 1.5, "distances in 16 dimensions are over-confident"
    assert summary["calibration_error_calibrated"] < summary["calibration_error"] / 2
    assert summary["nll_calibrated"] < summary["nll"] and result.accuracy == evaluate(RUN, toy_bank()).accuracy
    with pytest.raises(FewshotError, match="split 'val'"):
        evaluate(RUN, toy_bank(), calibrate=toy_bank(seed=5))
    with pytest.raises(FewshotError, match="calibrate=bank"):
        evaluate(RUN, toy_bank(), calibrate=True)


def test_open_set_evaluation():
    """Classes apart: open queries are recognised, and the accuracy on the known ones is that without open queries."""
    bank, base = toy_bank(spread=0.3), dataclasses.replace(RUN, episodes=100)
    run = dataclasses.replace(base, open_classes=3, open_queries=5)
    result = evaluate(run, bank)
    assert torch.equal(result.correct, evaluate(base, bank).correct), "inductive: further queries change nothing"
    assert result.measures["class_total"].sum(1).eq(75).all()
    assert result.measures["auroc_logit"].mean() > 0.95 and result.measures["accepted_logit"].mean() > 0.9
    noise = FeatureBank(torch.randn(360, 16, generator=torch.Generator().manual_seed(0)), toy_bank().labels)
    assert abs(float(evaluate(run, noise).measures["auroc_probability"].mean()) - 0.5) < 0.02
    assert result.run.key != evaluate(base, bank).run.key and "3 open classes" in result.run.protocol
    assert "open_classes" not in Run().to_dict(), "keys of results without open queries stay what they were"
    assert Run.from_dict(result.run.to_dict()) == result.run


def test_chunks_add_up():
    logits, labels = drawn()
    classes = torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    whole, parts = Measures(True, 9, 2.0), Measures(True, 9, 2.0)
    at_once = whole(logits, labels, classes)
    pieces = [parts(logits[i : i + 2], labels[i : i + 2], classes[i : i + 2]) for i in (0, 2, 4)]
    for name, values in at_once.items():
        np.testing.assert_allclose(torch.cat([piece[name] for piece in pieces]), values)
    assert parts.totals.keys() == whole.totals.keys() == {"confusion", "calibration", "calibration_calibrated"}
    for name, values in whole.totals.items():
        np.testing.assert_allclose(parts.totals[name], values)
