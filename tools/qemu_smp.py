"""Several vCPUs of Debian's QEMUs on the modelled KVM: OVMF to its shell, Linux to user mode (docs/guide/kvm.md).

    python -m tools.qemu_smp                       every boot, half a minute each
    python -m tools.qemu_smp trixie-full snp       those of this root and this kind of guest
    python -m tools.qemu_smp --write               every boot, and the table goes into docs/guide/kvm.md

Linux runs a threaded program on all CPUs, whose sums are checked. OVMF is that of the root trixie-full, Linux 6.12 that
of the root disk-trixie (./dev roots make NAME). Exit code: 0 all is well, 1 one boot is not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.threads import CannotBuildError, threaded_initrd

from tools.page_table import PageTable
from tools.rooted_qemu import CHECKOUT, RUN, CannotError, launch, tree
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

PLACE = PageTable(CHECKOUT / "docs" / "guide" / "kvm.md", "qemu_smp")
ROOTS = "bookworm-full", "trixie-full", "sid-full"
SYSTEMS = {"OVMF": "Shell>", "Linux": "ALL IS WELL"}
"""What is booted, and what it says when it is there."""
LIMIT = 300
"""Seconds after which a guest is taken to hang."""
_POLICIES = {"plain": "", "sev-es": "sev-guest,policy=0x5", "snp": "sev-snp-guest,policy=0x30000"}
_SHARE = tree("trixie-full") / "usr/share"


class Boot(NamedTuple):
    """One of the table."""

    root: str
    guest: str
    system: str
    vcpus: int

    def arguments(self) -> list[str]:
        """QEMU's."""
        line = ["-m", "512", "-smp", f"{self.vcpus}", "-M", "q35"]
        if self.guest == "plain":
            unit = "if=pflash,format=raw,unit"
            line += ["-cpu", "max", "-drive", f"{unit}=0,readonly=on,file={RUN}/code.fd"]
            line += ["-drive", f"{unit}=1,file={RUN}/vars.fd"]
        else:
            line[-1] += ",confidential-guest-support=sev0"
            secured = f"{_POLICIES[self.guest]},id=sev0,cbitpos=39,reduced-phys-bits=1"
            line += ["-cpu", "EPYC", "-bios", f"{RUN}/bios.fd", "-object", secured]
        if self.system == "Linux":
            line += ["-kernel", f"{RUN}/kernel", "-initrd", f"{RUN}/initrd"]
            line += ["-append", "console=ttyS0 panic=-1 quiet"]
        return line


def boots() -> Iterator[Boot]:
    """All of the table. QEMU 7.2 has no SNP guests."""
    for root in ROOTS:
        for guest in _POLICIES:
            if (root, guest) != ("bookworm-full", "snp"):
                yield from (Boot(root, guest, system, vcpus) for system in SYSTEMS for vcpus in (2, 4))


def files(kernel: Path, folder: Path) -> Mapping[str, Path | bytes]:
    """What the boots need; ``folder`` is for what is compiled. Raises CannotError."""
    try:
        initrd = threaded_initrd(folder)
    except CannotBuildError as error:
        raise CannotError(f"{error}; install gcc and libc6-dev") from None
    return {
        "code.fd": _SHARE / "OVMF/OVMF_CODE_4M.fd",
        "vars.fd": _SHARE / "OVMF/OVMF_VARS_4M.fd",
        "bios.fd": _SHARE / "ovmf/OVMF.fd",
        "kernel": kernel,
        "initrd": initrd,
    }


def problem_of(boot: Boot, needed: Mapping[str, Path | bytes]) -> str:
    """Boot it, and say what is not as it should be; empty if all is. Raises CannotError."""
    until = SYSTEMS[boot.system]
    seen = launch(boot.root, "linux-6.18", boot.arguments(), until=until, files=needed, limit=LIMIT)
    if until not in seen.serial:
        said = seen.errors.partition("\n{")[0] + seen.serial
        return f"no {until!r}, exit code {seen.code}: {said[-1000:]}"
    return "; ".join(str(violation) for violation in seen.vm.get("violations", []))


def table(results: Mapping[Boot, str]) -> str:
    """Markdown."""
    columns = [(system, vcpus) for system in SYSTEMS for vcpus in (2, 4)]
    heads = [f"{system}, {vcpus} vCPUs" for system, vcpus in columns]
    lines = [f"| QEMU of | guest | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for root, guest in dict.fromkeys((boot.root, boot.guest) for boot in results):
        cells = [results.get(Boot(root, guest, *column)) for column in columns]
        shown = ["" if cell is None else cell or "yes" for cell in cells]
        lines.append(f"| {root.removesuffix('-full')} | {guest} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def run(wanted: Iterable[Boot]) -> dict[Boot, str]:
    """Boot them, and tell. Raises CannotError."""
    disk = RECIPES["disk-trixie"]
    if not is_made(disk):
        raise CannotError(f"there is no root {disk.name}: ./dev roots make {disk.name}")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        needed = files(root_folder(disk) / "vmlinuz", Path(name))
        for boot in wanted:
            started = time.monotonic()
            results[boot] = problem_of(boot, needed)
            seconds = time.monotonic() - started
            said = results[boot] or "good"
            print(
                f"{boot.root} {boot.guest} {boot.system} {boot.vcpus}: {said} ({seconds:.0f} s)", flush=True
            )
    return results


def main() -> int:
    """Boot them, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="roots, kinds of guest, OVMF or Linux, numbers of vCPUs")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PLACE.page.name}")
    args = parser.parse_args()
    only = set(args.only)
    known = {f"{word}" for boot in boots() for word in boot}
    if only - known:
        parser.error(f"no such boots: {', '.join(sorted(only - known))}")
    names = [{f"{boot[place]}" for boot in boots()} & only for place in range(4)]
    wanted = [
        boot
        for boot in boots()
        if all(f"{word}" in chosen or not chosen for word, chosen in zip(boot, names, strict=True))
    ]
    try:
        results = run(wanted)
    except CannotError as error:
        print(f"qemu_smp: error: {error}", file=sys.stderr)
        return 5
    print(table(results))
    if args.write:
        PLACE.write(table(results))
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
