"""Every script in examples/ runs and succeeds (examples/)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.firmware_images import require_image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.boot
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example_runs(script: Path) -> None:
    require_image("OVMF_CODE_4M.fd")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
