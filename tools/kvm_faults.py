"""Lets each kind of ioctl of a boot fail in QEMU, the first time and the last (docs/guide/kvm.md, --fault).

    python -m tools.kvm_faults                    every ioctl, about five minutes, and a table
    python -m tools.kvm_faults KVM_CREATE_VCPU    these alone

QEMU may end with its own error, abort, or go on. Exit code: 0 it never did anything else, 1 it did (our failure),
5 this host cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from casemate import native

FIRMWARE_SAYS = "No bootable device"
"""What SeaBIOS says when it is done."""
LIMIT = 30
"""Seconds after which QEMU is ended; a fault may well make it wait for ever."""
_ERRNO = "EINVAL"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What QEMU did about one fault."""

    rule: str
    code: int | None
    booted: bool
    errors: str

    @property
    def is_ours(self) -> bool:
        """It crashed, or casemate says that it failed itself."""
        return (
            self.code in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL) or "internal error" in self.errors
        )

    @property
    def shown(self) -> str:
        """In words."""
        lines = [line for line in self.errors.splitlines() if not _is_noise(line)]
        last = lines[-1].removeprefix("qemu-system-x86_64: ")[:100] if lines else ""
        if self.is_ours:
            return f"CRASH {self.code}: {last}"
        if self.code == -signal.SIGABRT:
            return f"abort: {last}"
        if self.code:
            return f"exit code {self.code}: {last}"
        return "went on" if self.booted else f"waited: {last}"


def _is_noise(line: str) -> bool:
    return line.startswith(("casemate: ", "Unexpected error")) or "warning: host doesn't support" in line


def run(folder: Path, *options: str) -> Outcome:
    """Boot SeaBIOS, and end QEMU when it is done."""
    said, errors = folder / "seabios", folder / "errors"
    said.unlink(missing_ok=True)
    line = [sys.executable, "-m", "casemate", "kvm", "--quiet", *options, "--", "qemu-system-x86_64"]
    line += ["-accel", "kvm", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-net", "none"]
    line += ["-chardev", f"file,id=said,path={said}", "-device", "isa-debugcon,iobase=0x402,chardev=said"]
    with (
        errors.open("w") as file,
        subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as process,
    ):
        deadline, booted = time.monotonic() + LIMIT, False
        while process.poll() is None and not booted and time.monotonic() < deadline:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                booted = said.exists() and FIRMWARE_SAYS in said.read_text("latin-1")
        code = process.poll()
        if code is None:
            process.terminate()
            code = 0
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
    rule = options[options.index("--fault") + 1] if "--fault" in options else ""
    return Outcome(rule, code, booted, errors.read_text("utf-8", "replace"))


def calls_of_a_boot(folder: Path) -> Counter[str]:
    """How often each ioctl is made."""
    log = folder / "calls.jsonl"
    run(folder, "--log", str(log))
    with log.open() as lines:
        return Counter(json.loads(line)["ioctl"] for line in lines)


def main() -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="IOCTL", nargs="*", help="ioctls to let fail; all if none is given")
    args = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None or not native.KVM.exists():
        print("kvm_faults: error: install qemu-system-x86, and run ./dev check", file=sys.stderr)
        return 5
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = calls_of_a_boot(folder)
        print("| fault | what QEMU does |\n|---|---|")
        for call in args.names or sorted(calls):
            for number in sorted({1, max(calls[call], 1)}):
                outcome = run(folder, "--fault", f"{call}:{number}={_ERRNO}")
                failed |= outcome.is_ours
                print(f"| {outcome.rule} | {outcome.shown} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    sys.exit(main())
