"""Boot the installed OVMF to its shell, run a command there, and say what the guest did to its flash."""

import os
import sys
import tempfile
from pathlib import Path
from shutil import copy

from casemate import MachineSpec, boot
from casemate.firmware.descriptors import find_firmware, firmware_roots

firmware = find_firmware(firmware_roots(os.environ))
assert firmware.vars_template is not None
with tempfile.TemporaryDirectory() as folder:
    variables = Path(copy(firmware.vars_template, folder))
    spec = MachineSpec(code=firmware.code, variables=variables)
    outcome = boot(spec, typed=["ver"], timeout=120)
print(outcome.serial[-200:])
print(outcome.ending.word, outcome.report["phases"], outcome.report["writes"]["commands"])
sys.exit(outcome.exit_code)
