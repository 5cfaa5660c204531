"""Guests of Debian's QEMU under each kernel, held against what the sources say (tools/qemu_matrix.toml).

    python -m tools.qemu_matrix                    run every cell, some twelve minutes
    python -m tools.qemu_matrix --short            the ten that say most
    python -m tools.qemu_matrix --root trixie-full --guest snp
    python -m tools.qemu_matrix --write            every cell, and docs/design/qemu-matrix.md

QEMU runs in the roots bookworm-full, trixie-full and sid-full (./dev roots make NAME); OVMF is that of trixie-full. A
root that is missing is skipped with its reason. A guest that boots must start OVMF's first boot
option, in a VM of the expected type, with the digest that casemate measure predicts. Exit code: 0 all as expected,
1 something was not.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate import GuestKind, measure
from casemate.digest.sev_init import SevInit
from tools.page_table import PageTable
from tools.rooted_qemu import CHECKOUT, RUN, CannotError, Outcome, launch, require, tree
from tools.seed_table import BOOTED

EXPECTED = Path(__file__).with_suffix(".toml")
PLACE = PageTable(CHECKOUT / "docs" / "design" / "qemu-matrix.md", "qemu_matrix")
LIMIT = 240
"""Seconds after which a guest is taken to hang."""
_CPU = "EPYC"
_FIRMWARE = {
    name: tree("trixie-full") / f"usr/share/{path}"
    for name, path in (("code.fd", "OVMF/OVMF_CODE_4M.fd"), ("bios.fd", "ovmf/OVMF.fd"))
}
"""Debian 13's OVMF for each QEMU: that of Debian 12 waits for a TPM, minutes of it as SEV-ES guest on the model."""
_COMMON = "cbitpos=39,reduced-phys-bits=1"
_OLD = "bookworm-full"
"""Its QEMU has no ``legacy-vm-type``."""
_SHORT = (
    ("bookworm-full", "sev-es-legacy", "flash", "linux-6.1"),
    ("bookworm-full", "sev-es-init2", "flash", "linux-6.18"),
    ("bookworm-full", "snp", "bios", "linux-6.18"),
    ("trixie-full", "sev", "bios", "linux-6.18"),
    ("trixie-full", "sev-es-legacy", "flash", "linux-6.18"),
    ("trixie-full", "sev-es-init2", "flash", "linux-6.8"),
    ("trixie-full", "sev-es-init2", "flash", "linux-6.11"),
    ("sid-full", "sev-es-init2", "flash", "linux-6.18"),
    ("trixie-full", "snp", "bios", "linux-6.10"),
    ("sid-full", "snp", "bios", "linux-6.11"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One guest, and what must come of it: ``vm_type`` if it boots, ``says`` if QEMU refuses."""

    root: str
    guest: str
    firmware: str
    era: str
    source: str
    vm_type: str = ""
    says: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Which it is."""
        return self.root, self.guest, self.firmware, self.era

    @property
    def kind(self) -> GuestKind:
        """Of guest."""
        return GuestKind("sev-es" if self.guest.startswith("sev-es") else self.guest)

    def arguments(self) -> list[str]:
        """QEMU's, after those of every launch."""
        sev = f"sev-guest,id=sev0,policy={0x5 if self.kind is GuestKind.SEV_ES else 0x1:#x},{_COMMON}"
        match self.guest:
            case "sev-es-legacy" if self.root != _OLD:
                sev += ",legacy-vm-type=on"
            case "sev-es-init2":
                sev += ",legacy-vm-type=off"
            case "snp":
                sev = f"sev-snp-guest,id=sev0,policy=0x30000,{_COMMON}"
        machine = ["-cpu", _CPU, "-m", "256", "-M", "q35,confidential-guest-support=sev0", "-object", sev]
        if self.firmware == "bios":
            return [*machine, "-bios", f"{RUN}/bios.fd"]
        unit = "if=pflash,format=raw,unit"
        code, variables = f"{unit}=0,readonly=on,file={RUN}/code.fd", f"{unit}=1,file={RUN}/vars.fd"
        return [*machine, "-drive", code, "-drive", variables]

    def predicted(self) -> str:
        """The launch digest by ``casemate.measure``, in hex."""
        image = _FIRMWARE["code.fd" if self.firmware == "flash" else "bios.fd"]
        init = SevInit.LEGACY if self.vm_type == "KVM_X86_DEFAULT_VM" else SevInit.INIT2
        return measure(image, self.kind, vcpu_type=_CPU, init=init).digest.hex()

    def faults(self, outcome: Outcome) -> list[str]:
        """What is not as expected; empty if all is."""
        if self.says:
            said = any(self.says in line for line in outcome.errors.splitlines())
            return [
                *([] if outcome.code == 1 else [f"exit code {outcome.code}, not 1"]),
                *([] if said else [f"nothing about {self.says!r}"]),
                *(["the guest ran"] if outcome.serial else []),
            ]
        seen, expected = outcome.vm.get("digest"), self.predicted()
        return [
            *([] if outcome.code == 0 else [f"exit code {outcome.code}, not 0"]),
            *([] if BOOTED in outcome.serial else [f"no {BOOTED!r} on the serial line"]),
            *([] if outcome.vm.get("type") == self.vm_type else [f"VM type {outcome.vm.get('type')}"]),
            *([] if seen == expected else [f"digest {seen}, not {expected}"]),
        ]


def cells() -> Iterator[Cell]:
    """All that are expected, in the order of the file."""
    for row in tomllib.loads(EXPECTED.read_text("utf-8"))["row"]:
        outcome = {name: row[name] for name in ("source", "vm_type", "says") if name in row}
        for guest in row["guests"]:
            for firmware in row["firmware"]:
                for era in row["eras"]:
                    yield Cell(row["root"], guest, firmware, era, **outcome)


def short() -> list[Cell]:
    """Ten that a test runs."""
    return [cell for cell in cells() if cell.key in _SHORT]


def run(cell: Cell) -> Outcome:
    """Launch it in its root, and end it once OVMF starts a boot option. Raises CannotError."""
    require("trixie-full")
    return launch(cell.root, cell.era, cell.arguments(), until=BOOTED, files=_FIRMWARE, limit=LIMIT)


def table(expected: Iterable[Cell]) -> str:
    """Markdown: what every cell is expected to come to, a column for each kernel, and the sources."""
    everything = list(expected)
    eras = list(dict.fromkeys(cell.era for cell in everything))
    notes = list(dict.fromkeys((cell.vm_type or cell.says, cell.source) for cell in everything))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for cell in everything:
        word = "boots" if cell.vm_type else "refused"
        note = notes.index((cell.vm_type or cell.says, cell.source)) + 1
        rows.setdefault((cell.root, cell.guest, cell.firmware), {})[cell.era] = f"{word} ({note})"
    lines = [f"| root | guest | firmware | {' | '.join(eras)} |", "|---|---|---|" + "---|" * len(eras)]
    lines += [f"| {' | '.join((*key, *(row[era] for era in eras)))} |" for key, row in rows.items()]
    lines.append("")
    lines += [f"{number}. `{what}`: {source}." for number, (what, source) in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def judge(wanted: Iterable[Cell]) -> Mapping[Cell, list[str]]:
    """Run them one after the other, and tell; those that this host cannot run are left out."""
    found: dict[Cell, list[str]] = {}
    cannot: dict[str, str] = {}
    for cell in wanted:
        if cell.root in cannot:
            continue
        started = time.monotonic()
        try:
            outcome = run(cell)
        except CannotError as error:
            cannot[cell.root] = str(error)
            print(f"{cell.root}: skipped: {error}", file=sys.stderr, flush=True)
            continue
        found[cell] = faults = cell.faults(outcome)
        said = "; ".join(faults) or ("boots as expected" if cell.vm_type else "refused as expected")
        print(
            f"{' '.join(cell.key)}: {said} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True
        )
        if faults:
            print(outcome.errors[:3000], outcome.serial[-1000:], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run, judge, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="ten cells alone")
    parser.add_argument("--root", help="cells of this root alone")
    parser.add_argument("--guest", help="cells of this guest alone")
    parser.add_argument("--write", action="store_true", help=f"write {PLACE.page.name} if all is as expected")
    args = parser.parse_args()
    wanted = [
        cell
        for cell in (short() if args.short else cells())
        if args.root in (None, cell.root) and args.guest in (None, cell.guest)
    ]
    found = judge(wanted)
    failed = sum(1 for faults in found.values() if faults)
    print(f"{len(found)} cells run, {failed} not as expected, {len(wanted) - len(found)} skipped")
    if args.write and not failed:
        PLACE.write(table(cells()))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
