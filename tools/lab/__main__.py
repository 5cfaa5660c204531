"""``python -m tools.lab COMMAND``: runs a command under kvm_amd in an emulated processor (./dev lab)."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tools.lab.initramfs import build_initramfs
from tools.lab.kernel import PACKAGE, LabError, fetch_kernel

_RULES = (
    "tests/contract/test_contract_interrupts.py",
    "tests/host/test_model_manual.py",
    "tests/host/test_model_delivery.py",
)
"""Tests of what the manuals say that can be asked of a KVM, too."""


def main() -> int:
    """The command's exit code; 124 if its time was over, 125 if the rig failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.lab", description="Run a command under kvm_amd.")
    parser.add_argument("--kernel", default=PACKAGE, metavar="PACKAGE", help="as apt knows it (%(default)s)")
    parser.add_argument(
        "--qemu", default="qemu-system-x86_64", metavar="F", help="the outer emulator (%(default)s)"
    )
    parser.add_argument("--memory", default="3G", metavar="SIZE", help="of the outer machine (%(default)s)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds (%(default)s)")
    parser.add_argument(
        "--rules",
        action="store_true",
        help="instead of a command: the tests of the manual's rules, with a table of what KVM does",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args()
    if args.rules:
        args.command = [sys.executable, "-m", "pytest", "-p", "tools.lab.rules", *(args.command or _RULES)]
    if not args.command:
        parser.error("no command")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casemate" / "lab"
    try:
        return _run(args, cache)
    except LabError as error:
        print(f"lab: error: {error}", file=sys.stderr)
        return 125


def _run(args: argparse.Namespace, cache: Path) -> int:
    if shutil.which(args.qemu) is None:
        raise LabError(f"no {args.qemu}: install QEMU for x86, or name one with --qemu")
    kernel = fetch_kernel(cache, args.kernel)
    with tempfile.TemporaryDirectory(prefix="casemate-lab-") as name:
        work = Path(name)
        (work / "initramfs").write_bytes(build_initramfs(kernel))
        (work / "command").write_text(_script(args.command))
        if not _watch(_qemu(args, kernel.image, work), args.timeout):
            return 124
        status = work / "status"
        if not status.exists():
            console = (work / "console").read_text(errors="replace").splitlines()
            raise LabError("\n".join(["the outer machine ended early:", *console[-20:]]))
        return int(status.read_text())


def _watch(command: list[str], seconds: float) -> bool:
    """Pass on what the outer machine prints, until it ends or its time is over."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        in_time = timer.is_alive()
        timer.cancel()
        return in_time


def _script(command: list[str]) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in kept.items()]
    words = command[0] if len(command) == 1 else shlex.join(command)
    return "\n".join([*exports, f"cd {shlex.quote(os.getcwd())}", words, ""])


def _qemu(args: argparse.Namespace, image: Path, work: Path) -> list[str]:
    line = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check"
    share = "local,security_model=none"
    return [
        *(args.qemu, "-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max", "-m", args.memory),
        *(
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            f"file:{work / 'console'}",
        ),
        *("-kernel", str(image), "-initrd", str(work / "initramfs"), "-append", line),
        *(
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "file,id=out,path=/proc/self/fd/1,append=on",
            "-device",
            "virtserialport,chardev=out,name=out",
        ),
        *("-fsdev", f"{share},id=work,path={work}", "-device", "virtio-9p-pci,fsdev=work,mount_tag=work"),
        *("-fsdev", f"{share},id=below,path=/,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=below,mount_tag=below"),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
