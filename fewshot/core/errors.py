"""One exception type for every mistake a user can correct; the command line prints it without a traceback."""

from __future__ import annotations


class FewshotError(ValueError):
    """Wrong input. The message names the value, the limit and the remedy."""
