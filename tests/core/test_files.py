"""Files that are complete or absent, and what helps where they cannot be written."""

from __future__ import annotations

import errno
import os

import pytest

from fewshot.core.errors import FewshotError, remedy, with_remedy
from fewshot.core.files import check_file_to_write, write_atomically, write_together


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


def test_several_files_are_replaced_together(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.csv", "b.html")]
    assert write_together({path: b"old" for path in paths}) == tuple(paths)
    written = type(tmp_path).write_bytes

    def full(path, data):
        if path.name.startswith("b.html"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_together({path: b"new" for path in paths})
    assert sorted(tmp_path.iterdir()) == paths and all(path.read_bytes() == b"old" for path in paths)


def test_where_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in ((tmp_path, "is a folder"), ("", "is a folder"), (tmp_path / "file" / "b" / "c", "file is a file")):
        with pytest.raises(FewshotError, match=message):
            check_file_to_write(path)
    check_file_to_write(tmp_path / "file")
    check_file_to_write(tmp_path / "new" / "newer" / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
