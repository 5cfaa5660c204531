"""Boots Debian from a virtio disk to its prompt, as SEV, SEV-ES and SNP guest of Debian's QEMU (docs/guide/kvm.md).

    python -m tools.debian_guests               each kind of guest, a minute or so each
    python -m tools.debian_guests sev-es        this one alone
    python -m tools.debian_guests --root sid-full

QEMU and OVMF are those of the root trixie-full or the one that is named, the disk is the root disk (./dev roots make
NAME). Exit code: 0 each came to its prompt, 1 one did not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tools.rooted_qemu import RUN, CannotError, Outcome, launch
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

GUESTS = {
    "sev": "sev-guest,id=sev0,policy=0x1",
    "sev-es": "sev-guest,id=sev0,policy=0x5,legacy-vm-type=off",
    "snp": "sev-snp-guest,id=sev0,policy=0x30000",
}
"""QEMU's object, by the kind of guest."""
PROMPT = "root@guest:~#"
LIMIT = 600
"""Seconds after which a guest is taken to hang."""


def boot(guest: str, root: str = "trixie-full") -> Outcome:
    """One guest, ended at its prompt. Raises CannotError."""
    if not is_made(RECIPES["disk"]):
        raise CannotError("there is no root disk: ./dev roots make disk")
    disk = root_folder(RECIPES["disk"])
    files: dict[str, Path | bytes] = {name: disk / name for name in ("vmlinuz", "initrd.img", "root.ext4")}
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "512"]
    line += ["-object", f"{GUESTS[guest]},cbitpos=39,reduced-phys-bits=1", "-bios", "/usr/share/ovmf/OVMF.fd"]
    line += ["-kernel", f"{RUN}/vmlinuz", "-initrd", f"{RUN}/initrd.img"]
    line += ["-append", "root=/dev/vda rw console=ttyS0"]
    line += ["-drive", f"if=none,id=d,format=raw,file={RUN}/root.ext4"]
    line += ["-device", "virtio-blk-pci,drive=d,disable-legacy=on,iommu_platform=on"]
    return launch(root, "linux-6.18", line, until=PROMPT, files=files, limit=LIMIT)


def faults_of(outcome: Outcome) -> list[str]:
    """What is not as it should be; empty if all is."""
    return [
        *([] if PROMPT in outcome.serial else [f"no {PROMPT!r} on the serial line"]),
        *(str(violation) for violation in outcome.vm.get("violations", [])),
    ]


def main() -> int:
    """Boot them, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("guest", nargs="*", default=list(GUESTS), help=f"of {', '.join(GUESTS)}")
    parser.add_argument("--root", default="trixie-full", help="whose QEMU and OVMF (default trixie-full)")
    args = parser.parse_args()
    if unknown := set(args.guest) - set(GUESTS):
        parser.error(f"no such guest: {', '.join(sorted(unknown))}")
    failed = False
    for guest in args.guest:
        started = time.monotonic()
        try:
            outcome = boot(guest, args.root)
        except CannotError as error:
            print(f"debian_guests: error: {error}", file=sys.stderr)
            return 5
        faults = faults_of(outcome)
        failed |= bool(faults)
        print(f"{guest}: {'; '.join(faults) or 'came to its prompt'} ({time.monotonic() - started:.0f} s)")
        if faults:
            print(outcome.errors[:3000], outcome.serial[-1000:], file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
