"""Boot the installed OVMF to its shell, run a command there, and say what the guest did to its flash."""

import sys
import tempfile
from pathlib import Path

from casemate import MachineSpec, boot, find_firmware, new_variables

firmware = find_firmware()
with tempfile.TemporaryDirectory() as folder:
    variables = new_variables(firmware, Path(folder) / "vars.fd")
    spec = MachineSpec(code=firmware.code, variables=variables)
    outcome = boot(spec, typed=["ver"], timeout=120)
print(outcome.serial[-200:])
print(outcome.ending.word, outcome.report["phases"], outcome.report["writes"]["commands"])
sys.exit(outcome.exit_code)
