"""Litmus tests of two modelled vCPUs, as many rounds as you like (docs/decisions/0010-turns.md).

python -m tools.smp_litmus --rounds 1000000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import monotonic

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.litmus import KINDS

from casemate.guests.entry import make_image
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec


def main() -> int:
    """Run them, one line each; 1 if one showed what no x86 processor shows."""
    parser = argparse.ArgumentParser(description="What two modelled vCPUs see of each other's stores.")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="of each kind (1000000)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each kind (3600)")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "litmus.bin"
        for kind, make in KINDS.items():
            image.write_bytes(make_image(make(options.rounds), 32))
            spec = MachineSpec(bios=image, memory=4 << 20, vcpus=2)
            started = monotonic()
            outcome = boot(spec, timeout=options.timeout, hypervisor=ModelHypervisor)
            bad = outcome.report["exit_port"] if outcome.ending is Ending.EXIT_PORT else outcome.detail
            failures += bad != 0
            print(f"{kind}: {options.rounds} rounds, bad {bad}, {monotonic() - started:.1f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
