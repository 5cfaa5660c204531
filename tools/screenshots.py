"""Makes the pictures of the documents from a real run, in headless Chromium (docs/img).

python -m tools.screenshots      boots a SEV-ES guest that writes into its protected flash, and draws its report
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent.parent / "docs" / "img"
_BOOT = ["boot", "--guest", "sev-es", "--feature", "debug-swap", "--host", "model"]
_BOOT += ["--serial", "none", "--timeout", "120", "--until", "never"]
_WRITE = "mm 0xffe84000 12 -w 1 -n"
"""A command of the UEFI shell that writes a byte into flash unit 0."""
_BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,775"]


def main() -> int:
    """Boot, draw; the exit code of the program that failed, or 0."""
    browser = shutil.which("chromium")
    if browser is None:
        print("tools.screenshots: no chromium here; install the package chromium", file=sys.stderr)
        return 5
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "boot.html")
        command = [sys.executable, "-m", "casemate", *_BOOT, "--type", _WRITE, "--report", str(report)]
        subprocess.run(command, check=False)
        picture = IMAGES / "report.png"
        drawn = [
            browser,
            *_BROWSER,
            f"--user-data-dir={folder}/profile",
            f"--screenshot={picture}",
            report.as_uri(),
        ]
        return subprocess.run(drawn, check=False, stderr=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
