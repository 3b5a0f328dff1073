"""Checks of plain values at the boundary: integers, numbers, choices. The FewshotError names the value and the limit."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from fewshot.core.errors import FewshotError


def check_integer(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """`value` as a plain int, if it is an integer in least .. most (None: no limit).

    NumPy integers are integers; True, 3.0 and "3" are none. Raises FewshotError.
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        whole = int(value)
        if (least is None or whole >= least) and (most is None or whole <= most):
            return whole
    if least is not None and most is not None:
        limit = f" from {least} to {most}"
    else:
        limit = f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""
    raise FewshotError(f"{name}={value!r}; expected an integer{limit}")


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf, *, low_allowed: bool = True,
                 high_allowed: bool = True) -> float:
    """`value` as a plain float, if it is a finite number between `low` and `high`, which are allowed themselves or not.

    Integers and NumPy numbers are numbers; True and text are none. Raises FewshotError.
    """
    if not isinstance(value, bool) and isinstance(value, Real):
        number = float(value)
        above, under = number > low or (low_allowed and number == low), number < high or (high_allowed and number == high)
        if math.isfinite(number) and above and under:
            return number
    if math.isfinite(low) and math.isfinite(high):
        limit = f" in {'[' if low_allowed else '('}{low:g}, {high:g}{']' if high_allowed else ')'}"
    elif math.isfinite(low):
        limit = f" of at least {low:g}" if low_allowed else f" above {low:g}"
    elif math.isfinite(high):
        limit = f" of at most {high:g}" if high_allowed else f" below {high:g}"
    else:
        limit = ""
    raise FewshotError(f"{name}={value!r}; expected a finite number{limit}")


def check_positive(**values: float | None) -> None:
    """Raise FewshotError for the first value that is not above 0 (or is NaN); None, an option that is not set, passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise FewshotError(f"{name}={value!r}; give a positive number")


def check_at_least(least: int, **values: float | None) -> None:
    """Raise FewshotError for the first value below `least` (or NaN); None, an option that is not set, passes."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise FewshotError(f"{name}={value!r}; it must be at least {least}")


def check_choice(choices: Collection[str], **values: str) -> None:
    """Raise FewshotError for the first value that is none of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise FewshotError(f"{name}={value!r}; choose one of {', '.join(choices)}")
