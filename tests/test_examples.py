"""Every script in examples/ runs and succeeds (examples/)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.firmware_images import require_image

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


RUNS = [
    *((script.name, "bookworm") for script in EXAMPLES),
    ("boot_to_shell.py", "sid"),  # firmware that nobody leads to its shell stays in a menu
]


@pytest.mark.boot
@pytest.mark.parametrize(("script", "release"), RUNS)
def test_example_runs(script: str, release: str) -> None:
    root = require_image("OVMF_CODE_4M.fd", release).parents[3]
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        env={**os.environ, "CASEMATE_FIRMWARE": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
