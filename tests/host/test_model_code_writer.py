"""The engine's code is changed on kernels, too, that let nobody write to read-only mappings by /proc/self/mem."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from casemate.host.model.cpu import code_writer
code_writer._MEMORY = {memory!r}
from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.machine.boot import boot
from casemate.machine.spec import MachineSpec
open(sys.argv[1], "wb").write(make_image(tell(7), 64))
print(boot(MachineSpec(bios=sys.argv[1], memory=16 << 20), timeout=20).report["exit_port"])
for line in open("/proc/self/maps"):
    if "libunicorn" in line and "w" in line.split()[1] and "x" in line.split()[1]:
        print(line)
"""


@pytest.mark.parametrize("memory", ["/proc/self/mem", "/nowhere"])
def test_guest_runs_and_the_engine_stays_as_protected_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, memory: str
) -> None:
    image = tmp_path_factory.mktemp("writer") / "bios.bin"
    program = _PROGRAM.format(memory=memory)
    done = subprocess.run(
        [sys.executable, "-c", program, str(image)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7"]
