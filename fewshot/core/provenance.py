"""What software produced a number."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("fewshot", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the source tree, with `+` when it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve()
    package = here.parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", str(here))  # installed into somebody else's checkout: not ours
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain", ".").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
