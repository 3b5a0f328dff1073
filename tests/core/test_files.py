"""Files that are complete or absent, and what helps where they cannot be written."""

from __future__ import annotations

import errno
import os

import pytest

from fewshot.core.errors import remedy, with_remedy
from fewshot.core.files import write_atomically


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EIO])
def test_only_a_full_disk_wants_space(number):
    for error in (OSError(number, "x"), OSError(f"I/O error: (os error {number})")):
        assert ("free disk space" in remedy(error)) == (number == errno.ENOSPC)
        assert ("permissions" in remedy(error)) == (number in (errno.EACCES, errno.EROFS))
    assert with_remedy(OSError("nothing known")) == "nothing known"


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path):
    old, young, other = (tmp_path / f"{name}.0123456789ab.tmp" for name in ("a.bin", "a.bin.x", "b.bin"))
    fresh = tmp_path / "a.bin.ba9876543210.tmp"
    for path in (old, young, other, fresh):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    write_atomically(tmp_path / "a.bin", b"whole")
    assert not old.exists() and fresh.exists() and other.exists() and (tmp_path / "a.bin").read_bytes() == b"whole"
