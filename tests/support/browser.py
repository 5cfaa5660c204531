"""A browser that judges pages: headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def chromium(folder: Path, address: str, *options: str) -> str:
    """What headless Chromium prints; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    quiet = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile",
    ]  # fmt: skip
    result = subprocess.run(
        [program, *quiet, *options, address], capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout
