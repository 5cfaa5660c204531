"""Makes the table of docs/tutorial-seed.md: flash of SEV-ES guests on Debian 13's QEMU (QEMU docs/system/i386).

    python -m tools.seed_table            run every cell, about a minute, and print the table
    python -m tools.seed_table --write    also put it into docs/tutorial-seed.md

QEMU runs in the root trixie-full (./dev roots make trixie-full), which needs to be root; pip fetches what casemate
depends on for the root's Python, once. Exit code: 0 all as expected, 1 something was not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import GuestKind, measure, native
from casemate.digest.sev_init import SevInit
from tools.roots.make import cache_folder, is_made, root_folder
from tools.roots.recipes import RECIPES

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "tutorial-seed.md"
BEGIN, END = "<!-- table: python -m tools.seed_table --write -->\n", "<!-- end of table -->\n"
REFUSAL = "qemu-system-x86_64: pflash with kvm requires KVM readonly memory support"
"""What QEMU 10 says, as a line of its own, before it exits with 1."""
BOOTED = "BdsDxe: loading Boot"
"""What OVMF says on its serial line when it starts a boot option."""
LIMIT = 120
"""Seconds after which a guest is taken to hang."""
_ROOT = RECIPES["trixie-full"]
_CODE, _VARIABLES = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
_BIOS = "/usr/share/ovmf/OVMF.fd"
_CPU = "EPYC-v4"
_RUN = "/casemate/run"
_SEV_ES = "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1"
_SNP = "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=39,reduced-phys-bits=1"


class CannotError(Exception):
    """Why this host cannot run the table, and the remedy."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One launch: what it is asked for, and what must come of it."""

    name: str
    era: str
    legacy_vm_type: str = "off"
    has_flash: bool = True
    kind: GuestKind = GuestKind.SEV_ES
    vm_type: str = "KVM_X86_SEV_ES_VM"
    init: SevInit = SevInit.INIT2
    is_refused: bool = False

    def arguments(self) -> list[str]:
        """The part of QEMU's command line that differs."""
        snp = self.kind is GuestKind.SNP
        guest = _SNP if snp else f"{_SEV_ES},legacy-vm-type={self.legacy_vm_type}"
        if not self.has_flash:
            return ["-object", guest, "-bios", _BIOS]
        unit = "if=pflash,format=raw,unit"
        code, variables = f"{unit}=0,readonly=on,file={_CODE}", f"{unit}=1,file={_RUN}/vars.fd"
        return ["-object", guest, "-drive", code, "-drive", variables]

    def predicted(self) -> str:
        """The launch digest by ``casemate.measure``, in hex."""
        image = _tree() / (_CODE if self.has_flash else _BIOS)[1:]
        return measure(image, self.kind, vcpu_type=_CPU, init=self.init).digest.hex()


CELLS = (
    Cell("new type, new kernel", "linux-6.18", is_refused=True),
    Cell("new type, old kernel", "linux-6.10"),
    Cell("old type", "linux-6.18", "on", vm_type="KVM_X86_DEFAULT_VM", init=SevInit.LEGACY),
    Cell("QEMU's choice", "linux-6.18", "auto", vm_type="KVM_X86_DEFAULT_VM", init=SevInit.LEGACY),
    Cell("no flash", "linux-6.18", has_flash=False),
    Cell("snp", "linux-6.18", "-", has_flash=False, kind=GuestKind.SNP, vm_type="KVM_X86_SNP_VM"),
)
"""Every row, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one launch did."""

    code: int
    errors: str
    serial: str
    vm: dict[str, Any]

    def faults(self, cell: Cell) -> list[str]:
        """What is not as expected; empty if all is."""
        if cell.is_refused:
            return [
                *([] if self.code == 1 else [f"exit code {self.code}, not 1"]),
                *([] if REFUSAL in self.errors.splitlines() else [f"no line {REFUSAL!r}"]),
                *(["the guest ran"] if self.serial else []),
            ]
        expected = cell.predicted()
        return [
            *([] if self.code == 0 else [f"exit code {self.code}, not 0"]),
            *([] if BOOTED in self.serial else [f"no {BOOTED!r} on the serial line"]),
            *([] if self.vm.get("type") == cell.vm_type else [f"VM type {self.vm.get('type')}"]),
            *(
                []
                if self.vm.get("digest") == expected
                else [f"digest {self.vm.get('digest')}, not {expected}"]
            ),
        ]


def run(cell: Cell) -> Outcome:
    """Launch it in the root, and end it once OVMF starts a boot option. Raises CannotError."""
    packages = require()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(_tree() / _VARIABLES[1:], folder / "vars.fd")
        line = [
            *(sys.executable, "-m", "tools.roots", "run"),
            *("--bind", f"{CHECKOUT / 'src'}:/casemate/src", "--bind", f"{packages}:/casemate/packages"),
            *("--bind", f"{folder}:{_RUN}", _ROOT.name, "--"),
            *("env", "PYTHONPATH=/casemate/src:/casemate/packages", "PYTHONDONTWRITEBYTECODE=1"),
            *("timeout", "-s", "KILL", str(LIMIT), "python3", "-m", "casemate", "kvm", "--json"),
            *("--era", cell.era, "--", "qemu-system-x86_64", "-accel", "kvm", "-cpu", _CPU, "-m", "256"),
            *("-M", "q35,confidential-guest-support=sev0", "-nodefaults", "-display", "none", "-net", "none"),
            *("-serial", f"file:{_RUN}/serial", "-qmp", f"unix:{_RUN}/monitor,server=on,wait=off"),
            *cell.arguments(),
        ]
        errors = folder / "errors"
        with (
            errors.open("w") as file,
            subprocess.Popen(
                line, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
            ) as process,
        ):
            _end_when_booted(process, folder)
        return _outcome(process.returncode, errors.read_text("utf-8", "replace"), _serial(folder))


def require() -> Path:
    """The folder of casemate's dependencies for the root's Python, filled if need be. Raises CannotError."""
    if os.geteuid() != 0:
        raise CannotError("entering a root needs root")
    if not is_made(_ROOT):
        raise CannotError(f"there is no root {_ROOT.name}: ./dev roots make {_ROOT.name}")
    if not native.KVM.exists():
        raise CannotError("casemate's library for other VMMs was not built: ./dev check")
    version = max(path.name[6:] for path in _tree().glob("usr/lib/python3.*"))
    needed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    mark = hashlib.sha256(repr(needed).encode()).hexdigest()[:16]
    folder = cache_folder().parent / "packages" / f"{version}-{mark}"
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        target = Path(partial, "packages")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), "--only-binary=:all:"]
        made = subprocess.run(
            [*pip, "--python-version", version, *needed], capture_output=True, text=True, check=False
        )
        if made.returncode:
            cause = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotError(f"pip cannot fetch casemate's dependencies for Python {version}: {cause}")
        target.rename(folder)
    return folder


def _tree() -> Path:
    return root_folder(_ROOT) / "tree"


def _serial(folder: Path) -> str:
    path = folder / "serial"
    return path.read_text("latin-1") if path.exists() else ""


def _end_when_booted(process: subprocess.Popen[bytes], folder: Path) -> None:
    while BOOTED not in _serial(folder):
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        return
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX) as monitor,
        monitor.makefile("rw", encoding="utf-8") as lines,
    ):
        monitor.connect(str(folder / "monitor"))
        for command in ("qmp_capabilities", "quit"):
            lines.readline()
            lines.write(json.dumps({"execute": command}))
            lines.flush()
        lines.readline()


def _outcome(code: int, errors: str, serial: str) -> Outcome:
    start = errors.find("\n{")
    vms = json.loads(errors[start:])["vms"] if start >= 0 else []
    # QEMU makes others to ask them for their capabilities.
    return Outcome(code, errors, serial, next((vm for vm in vms if vm["digest"]), {}))


def table(outcomes: dict[Cell, Outcome]) -> str:
    """Markdown."""
    rows = [
        "| modelled kernel | guest | `legacy-vm-type` | firmware | seen | digest |",
        "|---|---|---|---|---|---|",
    ]
    for cell, outcome in outcomes.items():
        if cell.is_refused:
            seen, digest = f"`{REFUSAL.split(': ')[1]}`, exit code {outcome.code}", "-"
        else:
            seen, digest = (
                f"`{outcome.vm['type']}`; OVMF starts a boot option",
                f"`{outcome.vm['digest'][:16]}`...",
            )
        firmware = "flash" if cell.has_flash else "`-bios`"
        rows.append(
            f"| {cell.era} | {cell.kind.value} | {cell.legacy_vm_type} | {firmware} | {seen} | {digest} |"
        )
    return "\n".join(rows) + "\n"


def with_table(page: str, text: str) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2]


def main() -> int:
    """Run the cells, judge them, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    args = parser.parse_args()
    outcomes, failed = {}, False
    for cell in CELLS:
        started = time.monotonic()
        try:
            outcomes[cell] = run(cell)
        except CannotError as error:
            print(f"seed_table: error: {error}", file=sys.stderr)
            return 5
        faults = outcomes[cell].faults(cell)
        failed |= bool(faults)
        seconds = time.monotonic() - started
        print(f"{cell.name}: {'; '.join(faults) or 'as expected'} ({seconds:.0f} s)", file=sys.stderr)
        if faults:
            print(outcomes[cell].errors[:4000], file=sys.stderr)
    if failed:
        return 1
    text = table(outcomes)
    if args.write:
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), text), "utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
