"""How much memory a piece of work takes, measured in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

_PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
"""


def growth(before: str, work: str) -> float:
    """Megabytes (2**20 bytes) by which the peak of a fresh process rises during `work`, after `before` has run."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of a process is read from /proc")
    code = f"{_PEAK}\n{dedent(before)}\nstart = peak()\n{dedent(work)}\nprint('grew', peak() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return float(re.search(r"grew (\S+)", done.stdout)[1])
