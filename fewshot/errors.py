"""One exception type for every mistake a user can correct; the command line prints it without a traceback."""


class FewshotError(ValueError):
    """Wrong input. The message names the value, the limit and the remedy."""
