"""The tutorial, run command by command as it stands (docs/tutorial.md).

The examples of the guides are read by the parsers of their commands in tests/cli/test_cli_examples.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.firmware_images import require_image

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def commands(page: Path) -> list[str]:
    """Every command of casemate's on a page."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("casemate ")]


EXIT_CODES = {"--until never": 1, "--on-write kill": 1, "--expect-digest": 3}
"""What the tutorial says of commands that do not end with 0."""


@pytest.mark.boot
def test_tutorial_does_what_it_says(tmp_path: Path) -> None:
    code = require_image("OVMF_CODE.fd", "bookworm")
    environment = os.environ | {
        "CASEMATE_FIRMWARE": str(code.parents[3]),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    digest = ""
    for command in commands(TUTORIAL):
        line = re.sub(r"\bCODE\b", str(code), command).replace("DIGEST", digest)
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        expected = next((code for word, code in EXIT_CODES.items() if word in line), 0)
        assert done.returncode == expected, f"{line}\n{done.stderr}"
        if line.startswith("casemate measure"):
            digest = done.stdout.strip()
        if line.startswith("casemate explain"):
            assert "vcpu-signature" in done.stdout
    assert digest
    assert (tmp_path / "boot.html").exists()
