"""Measures beside accuracy: by hand, against scikit-learn, and as `evaluate` collects and stores them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

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
    summary_of,
)
from fewshot.evaluation.result import Result
from fewshot.evaluation.run import Run
from fewshot.evaluation.store import Store
from fewshot.statistics import mean_interval
from tests.evaluation.test_evaluate import RUN, toy_bank
from tests.memory import growth


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


@pytest.mark.parametrize(("ways", "queries"), [(5, 15), (7, 3), (100, 11), (3, 1)])
def test_macro_accuracy_of_balanced_queries_is_the_accuracy_to_the_last_bit(ways, queries):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ways).repeat_interleave(queries).expand(300, -1)
    found = Measures(torch.arange(ways))(torch.randn(300, ways * queries, ways, generator=generator), labels,
                                                 torch.arange(ways).expand(300, -1))
    macro = macro_accuracy(found["class_correct"], found["class_total"])
    assert macro.dtype == torch.float64 and torch.equal(macro, found["correct"])
    assert summary_of(found)["macro_accuracy"] == mean_interval(found["correct"]).mean


def test_macro_accuracy_of_unequal_counts_against_fractions():
    generator = torch.Generator().manual_seed(0)
    total = torch.randint(0, 40, (200, 6), generator=generator)
    total[:, 0] += 1  # every episode has a query
    correct = (total * torch.rand(200, 6, generator=generator)).long()
    wanted = []
    for right, each in zip(correct.tolist(), total.tolist(), strict=True):
        shares = [Fraction(r, n) for r, n in zip(right, each, strict=True) if n]
        wanted.append(float(sum(shares) / len(shares)))
    found = macro_accuracy(correct.to(torch.int16), total.to(torch.int16))
    np.testing.assert_allclose(found, wanted, rtol=1e-15, atol=0)


def test_scores_of_float32_logits_are_computed_in_float64():
    logits, labels = drawn(scale=30.0)
    single = logits.float()
    found, wanted = (probability_measures(x, labels, 1.7) for x in (single, single.double()))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


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


@pytest.mark.parametrize("queries", [2, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_open_set_measures_against_every_pair(queries, dtype):
    """By definition, pair by pair, with many ties; the counts are integers, so that AUROC is exact."""
    logits, labels = drawn(5, queries, seed=queries)
    logits = (4 * logits).round().div(8).to(dtype)
    labels[:, : queries // 2] = -1
    found = open_set_measures(logits, labels)
    for e in range(5):
        for name, score in (("logit", logits[e].amax(-1)), ("probability", logits[e].double().softmax(-1).amax(-1))):
            known, opened = score[labels[e] >= 0], score[labels[e] < 0]
            halves = (2 * (known[:, None] > opened) + (known[:, None] == opened)).sum()
            assert float(found[f"auroc_{name}"][e]) == float(halves) / (2 * len(known) * len(opened))
            precision = [float((opened <= s).sum()) / float((score <= s).sum()) for s in opened]
            assert float(found[f"aupr_{name}"][e]) == pytest.approx(sum(precision) / len(opened), rel=1e-14)


@pytest.mark.slow
def test_the_memory_of_measures_follows_the_queries():
    """20,000 queries: an array over pairs of them would take 3.2 GB, and the answers are 32 MB in float32."""
    megabytes = growth("""
        import torch
        from fewshot.evaluation.measures import Measures
        labels = torch.arange(20_000)[None] % 400
        labels[:, ::2] = -1
        logits, classes = torch.randn(1, 20_000, 400), torch.arange(400)[None]
        measures = Measures(classes[0], True, 2.0)
        measures(logits[:, :64], labels[:, :64], classes)
        """, "measures(logits, labels, classes)")
    assert megabytes < 500


def test_labels_may_be_ids_of_any_size():
    """Numbers are those of labels 0, 1, ...; a confusion matrix by the largest id would ask for terabytes."""
    dense = toy_bank()
    ids = torch.tensor([3, 70, 1_440_764, *(10**12 + 17 * torch.arange(9)).tolist()])
    sparse = FeatureBank(dense.features, ids[dense.labels], name=dense.name, split=dense.split)
    run = dataclasses.replace(RUN, episodes=50)
    found, wanted = (evaluate(run, each, metrics=True) for each in (sparse, dense))
    assert torch.equal(found.correct, wanted.correct)
    assert torch.equal(found.measures["confusion"], wanted.measures["confusion"])
    assert torch.equal(found.measures["confusion_classes"], ids)
    assert torch.equal(wanted.measures["confusion_classes"], torch.arange(12))
    assert torch.equal(found.measures["classes"], ids[wanted.measures["classes"].long()])
    assert found.over_classes == wanted.over_classes


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
    assert stored.summary()["macro_accuracy"] == stored.accuracy.mean


def test_results_stored_before_there_were_measures_still_load(tmp_path):
    result = evaluate(RUN, toy_bank())
    old = Result(result.record, result.correct, result.fingerprint, 1.0)
    Store(tmp_path).save(old)
    found = Store(tmp_path).load(result.record)
    assert found.measures == {} and found.accuracy == result.accuracy
    with pytest.raises(FewshotError, match="evaluate again"):
        found.over_classes  # noqa: B018


def test_metrics_are_measured_when_asked_for_also_where_a_result_is_stored_without(tmp_path):
    store, bank = Store(tmp_path), toy_bank()
    plain = evaluate(RUN, bank, store=store)
    result = evaluate(RUN, bank, store=store, metrics=True)
    assert torch.equal(plain.correct, result.correct) and plain.record.key == result.record.key
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
    assert result.record.key != evaluate(base, bank).record.key and "3 open classes" in result.protocol
    assert "open_classes" not in Run().to_dict(), "keys of results without open queries stay what they were"
    again = Run.from_record(result.record)
    assert again.open_classes == 3 and again.spec == run.spec and again.queries == 15


def test_chunks_add_up():
    logits, labels = drawn()
    classes = torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    whole, parts = (Measures(torch.arange(9), True, 2.0) for _ in range(2))
    at_once = whole(logits, labels, classes)
    pieces = [parts(logits[i : i + 2], labels[i : i + 2], classes[i : i + 2]) for i in (0, 2, 4)]
    for name, values in at_once.items():
        np.testing.assert_allclose(torch.cat([piece[name] for piece in pieces]), values)
    assert parts.totals.keys() == whole.totals.keys() == {"confusion", "calibration", "calibration_calibrated"}
    for name, values in whole.totals.items():
        np.testing.assert_allclose(parts.totals[name], values)
