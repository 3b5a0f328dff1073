"""One exception type for every mistake a user can correct; the command line prints it without a traceback."""

from __future__ import annotations

import errno
import re


class FewshotError(ValueError):
    """Wrong input. The message names the value, the limit and the remedy."""


def remedy(error: Exception) -> str:
    """What helps against a failed access, by its kind: only a full disk wants space. "" where nothing is known."""
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):  # out of safetensors
        number = int(told[1])
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "free disk space or choose another place"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "change the permissions or choose another place"
    if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return "look at the path, or choose another place"
    return ""


def with_remedy(error: Exception) -> str:
    """The error, and what helps against it."""
    return f"{error}; {found}" if (found := remedy(error)) else str(error)
