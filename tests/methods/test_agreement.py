"""docs/agreement.md is written by `python -m tests.agreement`; it must not fall behind the tests."""

from __future__ import annotations

from tests.agreement import PAGE, ROOT, compare, entries, name_cells

README = ROOT / "README.md"


def test_the_page_lists_every_comparison():
    lines = PAGE.read_text().splitlines()
    for entry in entries():
        rows = [line for line in lines if line.startswith(name_cells(entry))]
        assert len(rows) == 1, f"{name_cells(entry)}: run `python -m tests.agreement`"
        assert "| 0 of " in rows[0]
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == len(entries()) + 1, "rows of comparisons that are no longer made: run `python -m tests.agreement`"
    methods = {name for _, name, _, _ in entries()}
    assert f"{len(methods)} methods so far" in README.read_text(), f"README.md: it is {len(methods)} methods"


def test_a_difference_is_seen(oracles):
    """The official program scales cosines by 10 before its softmax; at another scale nothing but the labels agrees."""
    right = compare(oracles, ("", "simple_shot", {"norm": "l2n", "metric": "cosine", "scale": 10.0}, "ncc_cosine"))
    wrong = compare(oracles, ("", "simple_shot", {"norm": "l2n", "metric": "cosine", "scale": 9.0}, "ncc_cosine"))
    other = compare(oracles, ("", "simple_shot", {"norm": "un"}, "ncc_cosine"))
    assert right["float64"] < 1e-7 and right["episodes"] == 96 and right["mismatches"] == 0
    assert wrong["float64"] > 0.1 and wrong["mismatches"] == 0
    assert other["mismatches"] > 0
