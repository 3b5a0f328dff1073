"""A page in a headless browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")


def browse(html: str, script: str, folder: Path) -> list[str]:
    """The parts of `state`, an array that `script` fills when the page has loaded, and last whether the page is no wider
    than its window of 500 pixels. Fails when the page writes to the console."""
    probe = f"""<script>addEventListener("load", () => {{
      const state = [];
      {script}
      state.push(document.documentElement.scrollWidth <= innerWidth);
      document.body.dataset.state = state.join(";");
    }});</script></head>"""
    page = folder / "probe.html"
    page.write_text(html.replace("</head>", probe))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
         "--window-size=500,800", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-state="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return found[1].split(";")
