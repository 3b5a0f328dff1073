"""Every check returns plain values and refuses, with the limit, what only looks like one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewshot.core.checked import check_at_least, check_choice, check_integer, check_number, check_positive
from fewshot.core.errors import FewshotError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_come_back_plain(value):
    assert type(check_integer("ways", value, 3, 3)) is int and check_integer("ways", value) == 3


@pytest.mark.parametrize(("value", "limits", "message"), [
    (True, (), "ways=True; expected an integer$"), (np.True_, (), "expected an integer$"), ("3", (), "ways='3'"),
    (3.0, (), "ways=3.0"), (np.float64(3), (), "expected an integer$"), (None, (), "ways=None"),
    (1, (2,), "ways=1; expected an integer of at least 2$"), (5, (None, 4), "ways=5; expected an integer of at most 4$"),
    (0, (1, 4), "ways=0; expected an integer from 1 to 4$"), (5, (1, 4), "from 1 to 4$")])
def test_what_is_no_integer_or_out_of_range(value, limits, message):
    with pytest.raises(FewshotError, match=message):
        check_integer("ways", value, *limits)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1)])
def test_numbers_come_back_as_plain_floats(value):
    assert type(check_number("lr", value, 1, 1)) is float and check_number("lr", value) == 1


@pytest.mark.parametrize(("value", "limits", "message"), [
    (True, {}, "lr=True; expected a finite number$"), ("1", {}, "lr='1'"), (None, {}, "lr=None"), (1j, {}, "lr=1j"),
    (math.nan, {}, "lr=nan; expected a finite number$"), (math.inf, {}, "lr=inf; expected a finite number$"),
    (-1, {"low": 0}, "lr=-1; expected a finite number of at least 0$"),
    (0, {"low": 0, "low_allowed": False}, "lr=0; expected a finite number above 0$"),
    (2, {"high": 1.5}, "of at most 1.5$"), (1.5, {"high": 1.5, "high_allowed": False}, "below 1.5$"),
    (2, {"low": 0, "high": 1}, r"in \[0, 1\]$"), (0, {"low": 0, "high": 1, "low_allowed": False}, r"in \(0, 1\]$"),
    (1, {"low": 0, "high": 1, "high_allowed": False}, r"in \[0, 1\)$")])
def test_what_is_no_number_or_out_of_range(value, limits, message):
    with pytest.raises(FewshotError, match=message):
        check_number("lr", value, **limits)


def test_several_values_at_once():
    check_positive(scale=0.1, tolerance=None)
    check_at_least(1, steps=1, chunk=None)
    check_choice(("l2n", "un"), norm="un")
    for refused, message in ((lambda: check_positive(scale=1.0, C=0.0), "C=0.0; give a positive number"),
                             (lambda: check_positive(C=math.nan), "C=nan"),
                             (lambda: check_at_least(1, steps=3, chunk=0), "chunk=0; it must be at least 1"),
                             (lambda: check_at_least(1, steps=math.nan), "steps=nan"),
                             (lambda: check_choice(("l2n", "un"), norm="l3"), "norm='l3'; choose one of l2n, un")):
        with pytest.raises(FewshotError, match=message):
            refused()
