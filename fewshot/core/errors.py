"""One exception type for every mistake a user can correct; the command line prints it without a traceback."""

from __future__ import annotations

from collections.abc import Collection


class FewshotError(ValueError):
    """Wrong input. The message names the value, the limit and the remedy."""


def check_positive(**values: float) -> None:
    """Raise FewshotError for the first value that is not above 0 (or is NaN)."""
    for name, value in values.items():
        if not value > 0:
            raise FewshotError(f"{name}={value!r}; give a positive number")


def check_at_least(least: int, **values: int) -> None:
    """Raise FewshotError for the first value below `least`."""
    for name, value in values.items():
        if value < least:
            raise FewshotError(f"{name}={value!r}; it must be at least {least}")


def check_choice(choices: Collection[str], **values: str) -> None:
    """Raise FewshotError for the first value that is none of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise FewshotError(f"{name}={value!r}; choose one of {', '.join(choices)}")
