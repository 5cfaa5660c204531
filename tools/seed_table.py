"""Makes the tables of docs/tutorial-seed.md: QEMU, and a VMM with the mail's design (QEMU docs/system/i386; vmm.c).

    python -m tools.seed_table            run every cell, some two minutes, and print the tables
    python -m tools.seed_table --write    also put them into docs/tutorial-seed.md
    python -m tools.seed_table --root sid-full    the same launches by Debian sid's QEMU

QEMU runs in the root trixie-full, or the one that is named, with the OVMF of trixie-full. Where kernel hashes are
measured, the kernel is that of the root disk and OVMF that of sid-full (./dev roots make NAME). Entering a root needs
root; pip fetches what casemate depends on for the root's Python, once. The VMM is tests/userkvm/vmm.c, compiled here.
Exit code: 0 all as expected, 1 something was not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from casemate import GuestKind, measure
from casemate.digest.sev_init import SevInit
from casemate.testing.linux_init import initramfs, printing_init
from tools.page_table import PageTable
from tools.rooted_qemu import CHECKOUT, RUN, CannotError, Outcome, launch, require, tree
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

PLACE = PageTable(CHECKOUT / "docs" / "tutorial-seed.md", "seed_table")
VMM_PLACE = PLACE._replace(name="vmm table")
VMM = CHECKOUT / "tests" / "userkvm" / "vmm.c"
REFUSAL = "qemu-system-x86_64: pflash with kvm requires KVM readonly memory support"
"""What QEMU 10 says, as a line of its own, before it exits with 1."""
BOOTED = "BdsDxe: loading Boot"
"""What OVMF says on its serial line when it starts a boot option."""
HELLO = "user mode reached"
"""What the initrd of the guest with kernel hashes says."""
_ROOT = "trixie-full"
_CODE, _BIOS = (tree(_ROOT) / "usr/share" / path for path in ("OVMF/OVMF_CODE_4M.fd", "ovmf/OVMF.fd"))
_HASHING_BIOS = tree("sid-full") / "usr/share/ovmf/OVMF.amdsev.fd"
"""An OVMF that has a table of kernel hashes."""
_KERNEL = root_folder(RECIPES["disk"]) / "vmlinuz"
_COMMAND_LINE = "console=ttyS0 panic=-1 quiet"
_CPU = "EPYC-v4"
_SEV_ES = "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1"
_SNP = "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=39,reduced-phys-bits=1"


@dataclass(frozen=True, slots=True)
class Cell:
    """One launch of QEMU: what it is asked for, and what must come of it."""

    name: str
    era: str
    legacy_vm_type: str = "off"
    has_flash: bool = True
    kind: GuestKind = GuestKind.SEV_ES
    vm_type: str = "KVM_X86_SEV_ES_VM"
    init: SevInit = SevInit.INIT2
    is_refused: bool = False
    has_hashes: bool = False
    root: str = _ROOT

    @property
    def said(self) -> str:
        """What its serial line says in the end."""
        return HELLO if self.has_hashes else BOOTED

    @property
    def firmware(self) -> str:
        """For the table."""
        return "`-bios`, `kernel-hashes=on`" if self.has_hashes else "flash" if self.has_flash else "`-bios`"

    def arguments(self) -> list[str]:
        """The part of QEMU's command line that differs."""
        snp = self.kind is GuestKind.SNP
        guest = _SNP if snp else f"{_SEV_ES},legacy-vm-type={self.legacy_vm_type}"
        if self.has_hashes:
            files = ["-bios", f"{RUN}/bios", "-kernel", f"{RUN}/kernel", "-initrd", f"{RUN}/initrd"]
            return ["-object", f"{guest},kernel-hashes=on", *files, "-append", _COMMAND_LINE]
        if not self.has_flash:
            return ["-object", guest, "-bios", f"{RUN}/bios"]
        unit = "if=pflash,format=raw,unit"
        code, variables = f"{unit}=0,readonly=on,file={RUN}/code", f"{unit}=1,file={RUN}/vars.fd"
        return ["-object", guest, "-drive", code, "-drive", variables]

    def files(self) -> Mapping[str, Path | bytes]:
        """What QEMU reads. Raises CannotError where it is not there."""
        require(_ROOT)
        if not self.has_hashes:
            return {"code": _CODE, "bios": _BIOS}
        for root in ("sid-full", "disk"):
            if not is_made(RECIPES[root]):
                raise CannotError(f"there is no root {root}: ./dev roots make {root}")
        return {"bios": _HASHING_BIOS, "kernel": _KERNEL, "initrd": initramfs(printing_init(HELLO))}

    def predicted(self) -> str:
        """The launch digest by ``casemate.measure``, in hex."""
        if self.has_hashes:
            with tempfile.TemporaryDirectory() as name:
                initrd = Path(name, "initrd")
                initrd.write_bytes(initramfs(printing_init(HELLO)))
                prediction = measure(
                    _HASHING_BIOS,
                    self.kind,
                    vcpu_type=_CPU,
                    init=self.init,
                    kernel=_KERNEL,
                    initrd=initrd,
                    append=_COMMAND_LINE,
                )
            return prediction.digest.hex()
        image = _CODE if self.has_flash else _BIOS
        return measure(image, self.kind, vcpu_type=_CPU, init=self.init).digest.hex()


CELLS = (
    Cell("new type, new kernel", "linux-6.18", is_refused=True),
    Cell("new type, old kernel", "linux-6.10"),
    Cell("old type", "linux-6.18", "on", vm_type="KVM_X86_DEFAULT_VM", init=SevInit.LEGACY),
    Cell("QEMU's choice", "linux-6.18", "auto", vm_type="KVM_X86_DEFAULT_VM", init=SevInit.LEGACY),
    Cell("no flash", "linux-6.18", has_flash=False),
    Cell("kernel hashes", "linux-6.18", has_flash=False, has_hashes=True),
    Cell("snp", "linux-6.18", "-", has_flash=False, kind=GuestKind.SNP, vm_type="KVM_X86_SNP_VM"),
)
"""Every row about QEMU, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the mail's design and one firmware: the rules that it breaks, and whether its guest runs."""

    version: str
    firmware: str
    broken: frozenset[str] = frozenset()

    @property
    def runs(self) -> bool:
        """Both regressions kill the guest."""
        return not self.broken


VERSIONS = (
    Version("first", "-pflash"),
    Version("first", "-bios", frozenset({"bios-never-armed"})),
    Version("first", "-pflash-hashes", frozenset({"ram-never-armed", "whole-slot"})),
    Version("final", "-pflash"),
    Version("final", "-bios"),
    Version("final", "-pflash-hashes"),
)
"""Every row about vmm.c, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What ``casemate conform`` and vmm.c said of one version."""

    code: int
    said: str
    broken: frozenset[str]

    def faults(self, version: Version) -> list[str]:
        """What is not as expected; empty if all is."""
        words = "exit reason 5" if version.runs else "KVM_RUN: Bad address, exit reason 0"
        named = ", ".join(sorted(self.broken)) or "no rule"
        return [
            *([] if self.broken == version.broken else [f"{named} broken"]),
            *([] if self.said == words else [f"vmm said {self.said!r}, not {words!r}"]),
            *([] if self.code == int(bool(version.broken)) else [f"exit code {self.code}"]),
        ]


def faults_of(outcome: Outcome, cell: Cell) -> list[str]:
    """What of a launch of QEMU is not as expected; empty if all is."""
    if cell.is_refused:
        return [
            *([] if outcome.code == 1 else [f"exit code {outcome.code}, not 1"]),
            *([] if REFUSAL in outcome.errors.splitlines() else [f"no line {REFUSAL!r}"]),
            *(["the guest ran"] if outcome.serial else []),
        ]
    expected = cell.predicted()
    seen = outcome.vm.get("type"), outcome.vm.get("digest")
    return [
        *([] if outcome.code == 0 else [f"exit code {outcome.code}, not 0"]),
        *([] if cell.said in outcome.serial else [f"no {cell.said!r} on the serial line"]),
        *([] if seen[0] == cell.vm_type else [f"VM type {seen[0]}"]),
        *([] if seen[1] == expected else [f"digest {seen[1]}, not {expected}"]),
    ]


def run(cell: Cell) -> Outcome:
    """Launch it in the root, and end it once OVMF or the kernel came as far as it should. Raises CannotError."""
    machine = ["-cpu", _CPU, "-m", "512" if cell.has_hashes else "256"]
    machine += ["-M", "q35,confidential-guest-support=sev0", *cell.arguments()]
    return launch(cell.root, cell.era, machine, until=cell.said, files=cell.files())


def judge(version: Version) -> Seen:
    """Compile vmm.c, and have ``casemate conform`` judge it. Raises CannotError."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CannotError("no C compiler is installed: apt-get install gcc")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name, "vmm")
        subprocess.run([compiler, "-D_GNU_SOURCE", "-O1", "-o", program, VMM], check=True)
        line = [sys.executable, "-m", "casemate", "conform", "--json", "--", str(program)]
        done = subprocess.run(
            [*line, version.version, version.firmware], capture_output=True, text=True, check=False
        )
    start = done.stdout.find("\n{\n")
    if start < 0:
        raise CannotError(f"casemate conform judged nothing: {done.stderr.strip()}")
    rules = json.loads(done.stdout[start:])["vms"][0]["rules"]
    broken = frozenset(row["rule"] for row in rules if row["verdict"] == "broken")
    return Seen(done.returncode, done.stdout[:start].splitlines()[-1], broken)


def table(outcomes: dict[Cell, Outcome]) -> str:
    """Of QEMU, in Markdown."""
    rows = [
        "| modelled kernel | guest | `legacy-vm-type` | firmware | seen | digest |",
        "|---|---|---|---|---|---|",
    ]
    for cell, outcome in outcomes.items():
        if cell.is_refused:
            seen, digest = f"`{REFUSAL.split(': ')[1]}`, exit code {outcome.code}", "-"
        else:
            end = "Linux comes to user mode" if cell.has_hashes else "OVMF starts a boot option"
            seen, digest = f"`{outcome.vm['type']}`; {end}", f"`{outcome.vm['digest'][:16]}`..."
        words = cell.era, cell.kind.value, cell.legacy_vm_type, cell.firmware, seen, digest
        rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows) + "\n"


def vmm_table(outcomes: Mapping[Version, Seen]) -> str:
    """Of vmm.c, in Markdown."""
    rows = ["| `vmm` | what becomes of the guest | rules that `conform` finds broken |", "|---|---|---|"]
    for version, seen in outcomes.items():
        end = "it runs, and halts" if version.runs else f"`{seen.said}`"
        broken = ", ".join(f"`{rule}`" for rule in sorted(seen.broken)) or "none"
        rows.append(f"| `{version.version} {version.firmware}` | {end} | {broken} |")
    return "\n".join(rows) + "\n"


def _tell(name: str, faults: Iterable[str], started: float) -> None:
    seconds = time.monotonic() - started
    print(f"{name}: {'; '.join(faults) or 'as expected'} ({seconds:.0f} s)", file=sys.stderr)


def main() -> int:
    """Run the cells, judge them, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PLACE.page.name}")
    parser.add_argument("--root", default=_ROOT, help=f"whose QEMU and OVMF (default {_ROOT})")
    args = parser.parse_args()
    if args.write and args.root != _ROOT:
        parser.error(f"the page's table is that of {_ROOT}")
    judged: dict[Version, Seen] = {}
    outcomes: dict[Cell, Outcome] = {}
    failed = False
    try:
        for version in VERSIONS:
            started = time.monotonic()
            judged[version] = judge(version)
            faults = judged[version].faults(version)
            failed |= bool(faults)
            _tell(f"vmm {version.version} {version.firmware}", faults, started)
        for cell in (replace(cell, root=args.root) for cell in CELLS):
            started = time.monotonic()
            outcomes[cell] = run(cell)
            faults = faults_of(outcomes[cell], cell)
            failed |= bool(faults)
            _tell(cell.name, faults, started)
            if faults:
                print(outcomes[cell].errors[:4000], file=sys.stderr)
    except CannotError as error:
        print(f"seed_table: error: {error}", file=sys.stderr)
        return 5
    if failed:
        return 1
    texts = table(outcomes), vmm_table(judged)
    if args.write:
        PLACE.write(texts[0])
        VMM_PLACE.write(texts[1])
    print("\n".join(texts), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
