"""Methods beside references: tuned where there is one, paired, on the same episodes."""

from __future__ import annotations

import dataclasses

import pytest

from fewshot.core.errors import FewshotError
from fewshot.evaluation.evaluate import evaluate
from fewshot.evaluation.result import compare
from fewshot.reporting.reference_table import reference_table
from tests.evaluation.test_evaluate import RUN, toy_bank


@pytest.fixture(scope="module")
def results():
    bank = toy_bank(spread=2.0)
    default = [evaluate(RUN, bank, method=name) for name in ("protonet", "ridge", "soft_kmeans")]
    tuned = evaluate(dataclasses.replace(RUN, method="soft_kmeans", parameters={"scale": 2.5}), bank)
    return default, tuned


def test_differences_are_those_of_the_tuned_results(results):
    default, tuned = results
    table = reference_table(default, [tuned], ("soft_kmeans", "best inductive"), {"soft_kmeans": "scale 2.5."})
    best = max(default[:2], key=lambda r: r.accuracy.mean)
    assert table.columns[2:] == ("− soft_kmeans", f"− best inductive ({best.record.method})")
    rows = {label[0]: cells for label, cells in zip(table.labels, table.cells, strict=True)}
    assert rows["soft_kmeans"][1].mean == tuned.accuracy.mean and rows["soft_kmeans"][2] is None
    assert rows["soft_kmeans"][3].mean == pytest.approx(compare(tuned, best).difference.mean)
    assert rows["protonet"][1] is None
    assert rows["protonet"][2].mean == pytest.approx(compare(default[0], tuned).difference.mean)
    text = table.to_markdown()
    assert "soft\\_kmeans: scale 2.5." in text or "soft_kmeans: scale 2.5." in text
    assert f"{100 * rows['protonet'][2].mean:+.2f}".replace("-", "−") in text


def test_what_is_missing_or_double_is_named(results):
    default, tuned = results
    with pytest.raises(FewshotError, match="no result of the reference pt_map"):
        reference_table(default, [], ("pt_map",))
    with pytest.raises(FewshotError, match="inductive"):
        reference_table(default[2:], [], ("best inductive",))
    with pytest.raises(FewshotError, match="both of soft_kmeans"):
        reference_table([*default, tuned], [], ("soft_kmeans",))
