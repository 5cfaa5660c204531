"""QEMU with the modelled KVM (``casemate kvm``) beside the same QEMU with TCG, and what an exit and a start cost."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from benches.boot import TEXTS
from benches.console import RunError, Watched, watch
from benches.kvm import GUESTS, LOOP
from benches.linux import LINE, TIMEOUT_SECONDS, find_kernels, roots
from benches.table import Cell, Table
from casemate.guests.entry import make_image
from casemate.testing.linux_init import initramfs, printing_init

QEMU = "qemu-system-x86_64"
MEMORY = "512"
_EXITS = 200_000
_MODELLED = (sys.executable, "-m", "casemate", "kvm", "--")
_NOTHING = ("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none")
_SEV_ES = "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1"


def tables(runs: int) -> list[Table]:
    """Boots, then exits and starts; exits are left out without a compiler.

    Raises RunError without QEMU, Debian 13's OVMF or a kernel.
    """
    if shutil.which(QEMU) is None:
        raise RunError(f"no {QEMU}: install qemu-system-x86")
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as name:
        return [_boots(runs, Path(name)), _costs(runs, Path(name))]


def _boots(runs: int, folder: Path) -> Table:
    rows = []
    for name, guest in _guests(folder).items():
        pairs = []
        for _ in range(runs):
            print(f"bench: {name}", file=sys.stderr)
            pairs.append(guest())
        rows.append((name, *_compared(pairs)))
    columns = (
        "seconds to the prompt, or user mode",
        "modelled KVM",
        "TCG",
        "ratio",
        "CPU",
        "CPU, TCG",
        "ratio",
    )
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    notes = (
        f"{version.stdout.splitlines()[0]}, q35, {MEMORY} MiB, medians of {runs} interleaved runs",
        "the SEV-ES guest is beside TCG's plain one; CPU: seconds of all threads",
    )
    return Table("QEMU on the modelled KVM", columns, tuple(rows), notes)


def _compared(pairs: list[tuple[Watched, Watched]]) -> tuple[Cell, ...]:
    def median(which: int, of: Callable[[Watched], float]) -> float:
        return statistics.median(of(pair[which]) for pair in pairs)

    wall = [median(which, lambda watched: watched.seen[-1]) for which in (0, 1)]
    busy = [median(which, lambda watched: watched.cpu) for which in (0, 1)]
    return (*wall, wall[0] / wall[1], *busy, busy[0] / busy[1])


def _guests(folder: Path) -> dict[str, Callable[[], tuple[Watched, Watched]]]:
    code, template = _firmware("OVMF/OVMF_CODE_4M.fd"), _firmware("OVMF/OVMF_VARS_4M.fd")
    bios = ["-bios", str(_firmware("ovmf/OVMF.fd"))]
    kernels = [kernel for kernel in find_kernels() if "vmlinuz-6.12" in kernel.name]
    if not kernels:
        raise RunError("no kernel 6.12: ./dev test fetches one")
    initrd = folder / "initrd"
    initrd.write_bytes(initramfs(printing_init(LINE.decode())))
    linux = ["-kernel", str(kernels[0]), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1"]
    secured = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC", "-object", _SEV_ES, *bios]

    def flash() -> list[str]:
        variables = shutil.copy(template, folder / "vars.fd")
        unit = "if=pflash,format=raw,unit"
        return ["-drive", f"{unit}=0,readonly=on,file={code}", "-drive", f"{unit}=1,file={variables}"]

    return {
        "OVMF, pflash": lambda: (_modelled([*_Q35, *flash()], TEXTS), _tcg([*_Q35, *flash()], TEXTS)),
        "OVMF, -bios": lambda: (_modelled([*_Q35, *bios], TEXTS), _tcg([*_Q35, *bios], TEXTS)),
        "Linux 6.12": lambda: (_modelled([*_Q35, *linux], (LINE,)), _tcg([*_Q35, *linux], (LINE,))),
        "OVMF, -bios, SEV-ES": lambda: (_modelled(secured, TEXTS), _tcg([*_Q35, *bios], TEXTS)),
    }


_Q35 = ("-M", "q35", "-cpu", "max")


def _modelled(guest: Sequence[str], texts: Sequence[bytes]) -> Watched:
    return watch([*_MODELLED, *_line("kvm"), *guest], texts, TIMEOUT_SECONDS)


def _tcg(guest: Sequence[str], texts: Sequence[bytes]) -> Watched:
    return watch([*_line("tcg"), *guest], texts, TIMEOUT_SECONDS)


def _line(accelerator: str) -> list[str]:
    return [QEMU, *_NOTHING, "-accel", accelerator, "-m", MEMORY, "-no-reboot", "-serial", "stdio"]


def _firmware(path: str) -> Path:
    """Debian 13's: that of Debian 12 waits for a TPM."""
    found = [root / "usr/share" / path for root in roots() if root.name.startswith("trixie-ovmf-2")]
    if not found:
        raise RunError(f"no {path} of Debian 13: ./dev test fetches it")
    return found[0]


def _costs(runs: int, folder: Path) -> Table:
    rows: list[tuple[Cell, ...]] = []
    notes = ["start: QEMU without a machine's devices that is told to quit, with casemate kvm less without"]
    if compiler := shutil.which("cc"):
        rows += [(f"{name}, us", cost) for name, cost in _exits(runs, folder, compiler)]
        notes[:0] = [f"an exit of a loop in C that handles it at once, medians of {runs} runs of {_EXITS}"]
    else:
        notes[:0] = ["no C compiler (cc): exits are left out"]
    rows.append(("start, ms", statistics.median(_start() for _ in range(runs)) * 1e3))
    return Table("What the modelled KVM costs a VMM", ("", "casemate kvm"), tuple(rows), tuple(notes))


def _exits(runs: int, folder: Path, compiler: str) -> Iterator[tuple[str, float]]:
    """Microseconds by what the guest does."""
    program, image = folder / "kvm_loop", folder / "image.bin"
    subprocess.run([compiler, "-O2", "-o", program, LOOP], check=True)
    for name, code, bits in GUESTS:
        image.write_bytes(make_image(bytes.fromhex(code), bits))
        line = [*_MODELLED, str(program), str(image), str(_EXITS)]
        times = [
            float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            for _ in range(runs)
        ]
        yield name, statistics.median(times) / 1e3


def _start() -> float:
    line = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio", "-S"]
    return _seconds([*_MODELLED, *line, "-accel", "kvm"]) - _seconds([*line, "-accel", "tcg"])


def _seconds(line: Sequence[str]) -> float:
    started = perf_counter()
    subprocess.run(line, input=b"quit\n", capture_output=True, check=True)
    return perf_counter() - started
