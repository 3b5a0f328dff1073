"""This process among others, and how it is stopped."""

from __future__ import annotations

import os


class Stopped(Exception):
    """The user's interruption, with the number of the signal last; not a KeyboardInterrupt, which typer would turn into a
    bare exit code."""


def is_first_process() -> bool:
    """Whether this is the only process, or the first on this machine of those that torchrun started: all meet the same
    mistakes, and one message is enough."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
