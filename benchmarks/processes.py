"""Commands as processes of their own: seconds from start to end, processor's seconds, peak memory.

    python benchmarks/processes.py MODULE [ARGUMENT ...]

runs a module as `python -m` does and prints, as its last line, the peak memory of that in MiB.
"""

from __future__ import annotations

import os
import re
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


def peak_memory() -> float:
    """MiB that this process has had resident at most, since it began to run its present program.

    That is not `ru_maxrss`, where there is something better: when a process starts another program the kernel keeps the
    larger of the peaks, and a child is its parent for a moment, so that a small child of a large parent has the parent's.
    Nor is it what a parent reads at the end of a child: to take torch apart touches 125 MiB that nothing had needed.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux; macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


class Taken(NamedTuple):
    """seconds     from the start of the process to its end
    processor   seconds of the processors, user and system, of the process and of those it waited for
    output      what it printed
    """

    seconds: float
    processor: float
    output: str


def run(command: Sequence[object], cwd: Path | None = None, **environment: str) -> Taken:
    """Run Python with the arguments `command` to its end, `environment` added to that of this process.

    Raises SystemExit, with what it wrote to its standard error, where it fails.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, env=os.environ | environment, text=True,
                                   stdout=subprocess.PIPE, stderr=errors)
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))} ended with code {process.returncode}\n{errors.read()}")
    return Taken(seconds, used.ru_utime + used.ru_stime, output)


def peak_of(module: str, *arguments: object, **environment: str) -> tuple[float, float]:
    """(seconds from start to end, peak memory in MiB) of a process that runs a module with these arguments."""
    taken = run([__file__, module, *arguments], **environment)
    return taken.seconds, float(taken.output.split()[-1])


if __name__ == "__main__":
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        print(peak_memory())
