from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_of_kernel_eras_is_the_table_of_the_model() -> None:
    command = [sys.executable, "-m", "tools.kernel_eras"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "design" / "kernel-eras.md").read_text("utf-8") == made
