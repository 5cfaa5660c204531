"""Boots Debian from a virtio disk to its prompt, as SEV, SEV-ES and SNP guest of Debian's QEMU (docs/guide/kvm.md).

    python -m tools.debian_guests               each kind of guest, a minute or two each
    python -m tools.debian_guests sev-es        this one alone
    python -m tools.debian_guests libvirt       Debian 13 as SNP guest of Debian 13's libvirt, and its report
    python -m tools.debian_guests --root sid-full

QEMU and OVMF are those of the root trixie-full or the one that is named, the disks are the root disks (./dev roots make
NAME). Exit code: 0 each came to its prompt, 1 one did not, 5 this host cannot.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from casemate import GuestKind, measure
from tools import rooted_libvirt
from tools.rooted_qemu import RUN, CannotError, Outcome, launch, tree
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

GUESTS = {
    "sev": "sev-guest,id=sev0,policy=0x1",
    "sev-es": "sev-guest,id=sev0,policy=0x5,legacy-vm-type=off",
    "snp": "sev-snp-guest,id=sev0,policy=0x30000",
}
"""QEMU's object, by the kind of guest."""
LIBVIRT = "libvirt"
PROMPT = "root@guest:~#"
LIMIT = 600
"""Seconds after which a guest is taken to hang."""
APPEND = f"root=/dev/vda rw console=ttyS0 systemd.default_device_timeout_sec={LIMIT}"
"""A busy host brings no device within systemd's 90 seconds."""
_REPORT_DATA = b"data of the guest".ljust(64, b"\0")
_REPORT = """\
modprobe sev-guest; mkdir -p /sys/kernel/config/tsm/report/r; cd /sys/kernel/config/tsm/report/r
printf 'data of the guest' | dd bs=64 conv=sync of=inblob status=none
echo "REPORT $(base64 -w0 outblob) END"
"""
_SHUTDOWN = "systemctl poweroff -ff\n"


def _disk(name: str) -> Path:
    if not is_made(RECIPES[name]):
        raise CannotError(f"there is no root {name}: ./dev roots make {name}")
    return root_folder(RECIPES[name])


def boot(guest: str, root: str = "trixie-full") -> Outcome:
    """One guest, ended at its prompt. Raises CannotError."""
    disk = _disk("disk")
    files: dict[str, Path | bytes] = {name: disk / name for name in ("vmlinuz", "initrd.img", "root.ext4")}
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "512"]
    line += ["-object", f"{GUESTS[guest]},cbitpos=39,reduced-phys-bits=1", "-bios", "/usr/share/ovmf/OVMF.fd"]
    line += ["-kernel", f"{RUN}/vmlinuz", "-initrd", f"{RUN}/initrd.img"]
    line += ["-append", APPEND]
    line += ["-drive", f"if=none,id=d,format=raw,file={RUN}/root.ext4"]
    line += ["-device", "virtio-blk-pci,drive=d,disable-legacy=on,iommu_platform=on"]
    return launch(root, "linux-6.18", line, until=PROMPT, files=files, limit=LIMIT)


def faults_of(outcome: Outcome) -> list[str]:
    """What is not as it should be; empty if all is."""
    return [
        *([] if PROMPT in outcome.serial else [f"no {PROMPT!r} on the serial line"]),
        *(str(violation) for violation in outcome.vm.get("violations", [])),
    ]


def boot_by_libvirt() -> list[str]:
    """Debian 13 as SNP guest of libvirt: what is not as it should be. Raises CannotError."""
    disk = _disk("disk-trixie")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("vmlinuz", "initrd.img", "root.ext4"):
            shutil.copyfile(disk / file, folder / file)
        firmware = f"<loader type='rom'>{rooted_libvirt.OVMF}</loader> <kernel>{RUN}/vmlinuz</kernel>"
        firmware += f"<initrd>{RUN}/initrd.img</initrd> <cmdline>{APPEND}</cmdline>"
        domain = rooted_libvirt.domain(
            "snp",
            1024,
            firmware=firmware,
            disk="root.ext4",
            security=rooted_libvirt.SNP_SECURITY,
            serial=rooted_libvirt.SERIAL_SOCKET,
        )
        (folder / "domain.xml").write_text(domain)
        steps = f"$virsh create {RUN}/domain.xml\n"
        steps += "while $virsh domstate snp > /dev/null 2>&1; do sleep 1; done\n"
        with rooted_libvirt.start(folder, steps) as process:
            try:
                serial = _use_console(folder / "serial", lambda: process.poll() is None)
            finally:
                process.terminate()
        return _report_faults(folder, serial)


def _use_console(path: Path, is_alive: Callable[[], bool]) -> str:
    """All that the guest said until its power was off, after it was asked for a report at its prompt."""
    deadline = time.monotonic() + LIMIT
    said, asked = "", False
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1)
        while is_alive() and time.monotonic() < deadline:
            try:
                line.connect(str(path))
                break
            except OSError:
                time.sleep(0.2)
        while is_alive() and time.monotonic() < deadline:
            try:
                read = line.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
            if not read:
                break
            said += read.decode("latin-1")
            if PROMPT in said and not asked:
                asked = True
                line.sendall(_REPORT.encode())
            if re.search(r"REPORT \S+ END", said):
                with suppress(OSError):
                    line.sendall(_SHUTDOWN.encode())
    return said


def _report_faults(folder: Path, serial: str) -> list[str]:
    if PROMPT not in serial:
        return [f"no {PROMPT!r} on the serial line: {serial[-1000:]}"]
    if (found := re.search(r"REPORT ([A-Za-z0-9+/=]+) END", serial)) is None:
        return [f"no report on the serial line: {serial[-1000:]}"]
    report = folder / "report"
    report.write_bytes(base64.b64decode(found[1]))
    image = tree(rooted_libvirt.ROOT) / rooted_libvirt.OVMF[1:]
    digest = measure(image, GuestKind.SNP, vcpu_type="EPYC").digest.hex()
    line = [sys.executable, "-m", "casemate", "verify", str(report)]
    for certificate in ("ark", "ask", "vcek"):
        line += [f"--{certificate}", str(folder / "platform" / f"{certificate}.pem")]
    line += ["--policy", "0x30000", "--measurement", digest, "--report-data", _REPORT_DATA.hex()]
    done = subprocess.run([*line, "--max-vmpl", "3"], capture_output=True, text=True, check=False)
    return [] if not done.returncode else [f"the report is not believed: {done.stdout}{done.stderr}"]


def _faults(guest: str, root: str) -> list[str]:
    if guest == LIBVIRT:
        return boot_by_libvirt()
    outcome = boot(guest, root)
    faults = faults_of(outcome)
    return [*faults, outcome.errors[:3000], outcome.serial[-1000:]] if faults else []


def main() -> int:
    """Boot them, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [*GUESTS, LIBVIRT]
    parser.add_argument("guest", nargs="*", default=kinds, help=f"of {', '.join(kinds)}")
    parser.add_argument("--root", default="trixie-full", help="whose QEMU and OVMF (default trixie-full)")
    args = parser.parse_args()
    if unknown := set(args.guest) - set(kinds):
        parser.error(f"no such guest: {', '.join(sorted(unknown))}")
    failed = False
    for guest in args.guest:
        started = time.monotonic()
        try:
            faults = _faults(guest, args.root)
        except CannotError as error:
            print(f"debian_guests: error: {error}", file=sys.stderr)
            return 5
        failed |= bool(faults)
        good = "came to its prompt" + (", and its report is believed" if guest == LIBVIRT else "")
        print(f"{guest}: {faults[0] if faults else good} ({time.monotonic() - started:.0f} s)", flush=True)
        print(*faults[1:], sep="\n", end="", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
