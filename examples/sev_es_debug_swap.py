"""Boot the installed OVMF as a SEV-ES guest with debug-swap from protected flash; it must leave its firmware alone."""

import tempfile
from pathlib import Path

from casemate import GuestKind, LaunchOptions, MachineSpec, boot, find_firmware, new_variables

firmware = find_firmware("sev-es")
with tempfile.TemporaryDirectory() as folder:
    variables = new_variables(firmware, Path(folder) / "vars.fd")
    spec = MachineSpec(code=firmware.code, variables=variables, kind=GuestKind.SEV_ES, machine="pc")
    outcome = boot(spec, LaunchOptions(features=("debug-swap",)), until="Shell> ", timeout=120)
print(outcome.report["flash"][0]["protection"], outcome.report["warnings"])
assert outcome.report["writes"]["violations"] == 0
