"""Random user-mode code on the model, on QEMU's TCG and on the processor by KVM (docs/design/cpu.md)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # for ``support``
