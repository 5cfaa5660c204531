"""Lets each system call of a boot fail once, on each file and in each phase, and looks at what is left (strace(1)).

    python -m tools.injected_faults                 every distinct call, file and phase, at most 400
    python -m tools.injected_faults --most 40       that many of them, evenly spread

The guest programs bytes of its variable store in a known order. Whatever fails: the store must hold the first of them
and nothing else, the exit code must be one that is documented for it, and a line must say why. Exit code: 0 all did,
1 some did not, 5 there is no strace here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.guests.entry import make_image
from casemate.testing.images import variable_store

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.assembler import assemble

PROGRAMS = 64
"""Bytes that the guest programs, each once."""
CALLS = (
    "openat", "read", "pread64", "write", "pwrite64", "close", "lseek", "fstat", "newfstatat", "ftruncate", "fsync",
    "fdatasync", "fallocate", "mmap", "mremap", "mprotect", "memfd_create", "flock", "fcntl", "rename", "unlink",
    "clone3", "pipe2", "socketpair", "ioctl",
)  # fmt: skip
_ERRORS = {"write": "ENOSPC", "pwrite64": "ENOSPC", "ftruncate": "ENOSPC", "fallocate": "ENOSPC", "mmap": "ENOMEM",
           "mremap": "ENOMEM", "memfd_create": "EMFILE", "openat": "EMFILE", "clone3": "EAGAIN", "pipe2": "EMFILE",
           "socketpair": "EMFILE"}  # fmt: skip
_GOOD_CODES = {0, 1, 4, 5}
"""A guest that ended, one that misbehaved, bad input, and a host that cannot."""
_LINE = re.compile(r"^(\d+) +([a-z0-9_]+)\((.*)")
_PATH = re.compile(r'"([^"]*)"|\d+<([^>]*)>')
_BEGIN, _CHUNK = "guest.bin", 1 << 17
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Case:
    """The ``number``-th such call of one thread fails; ``file`` and ``phase`` say which that is."""

    call: str
    file: str
    phase: str
    number: int

    @property
    def error(self) -> str:
        """The errno that it fails with."""
        return _ERRORS.get(self.call, "EIO")


def find_cases(most: int) -> list[Case]:
    """Of a boot that succeeds: the first call of each kind, file and phase. Raises RuntimeError if it does not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace"
        done = _boot(folder, ["-y", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"])
        if done.returncode or store_fault(folder, PROGRAMS):
            raise RuntimeError(f"the boot without a fault ends with {done.returncode}: {done.stderr}")
        cases = list(_cases(trace.read_text("utf-8", "replace").splitlines(), folder))
    step = max(len(cases) / most, 1)
    return [cases[int(step * number)] for number in range(min(most, len(cases)))]


def _cases(lines: list[str], folder: Path) -> Iterator[Case]:
    """Phases are those of the guest: before its first thread, while there are threads, and after."""
    counts: Counter[tuple[str, str]] = Counter()
    seen, met = set(), set()
    main = lines[0].split()[0]
    last_of_threads = max((n for n, line in enumerate(lines) if line.split()[0] != main), default=0)
    begun, phase = False, "before"
    for position, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, call, arguments = found.groups()
        counts[thread, call] += 1
        # strace counts by thread, and the first that comes so far meets the fault.
        is_met = (call, counts[thread, call]) in met
        met.add((call, counts[thread, call]))
        begun = begun or _BEGIN in arguments
        if not begun or is_met:
            continue
        path = next((first or second for first, second in _PATH.findall(arguments)), "")
        file = _name(path, folder)
        if call == "clone3":
            phase = "run"
        if phase == "run" and position > last_of_threads:
            phase = "after"
        if call == "close" and not file.startswith("/"):
            continue  # what is no file does not fail
        if (call, file, phase) not in seen and not file.endswith((".py", ".pyc", ".so")):
            seen.add((call, file, phase))
            yield Case(call, file, phase, counts[thread, call])


def _name(path: str, folder: Path) -> str:
    """Without what differs from run to run."""
    text = path.replace(str(folder), "")
    return re.sub(r"\.[\w.]+\.\w{8}$|:\[\d+\]|\d{3,}", "*", text)


def run(case: Case) -> str | None:
    """What is wrong with the end of a boot in which this fails; None if nothing is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inject = f"inject={case.call}:error={case.error}:when={case.number}"
        try:
            done = _boot(folder, ["-o", "/dev/null", "-e", f"trace={case.call}", "-e", inject])
        except subprocess.TimeoutExpired:
            return "it never ended"
        if "Traceback" in done.stderr or "internal error" in done.stderr:
            return f"internal error: {done.stderr[-300:]}"
        if done.returncode not in _GOOD_CODES:
            return f"exit code {done.returncode}: {done.stderr[-300:]}"
        if done.returncode and "casemate: " not in done.stderr:
            return f"exit code {done.returncode} and no reason: {done.stderr[-300:]}"
        return store_fault(folder, PROGRAMS if done.returncode == 0 else None)


def _boot(folder: Path, tracing: list[str]) -> subprocess.CompletedProcess[str]:
    store = variable_store(_CHUNK)
    (folder / "vars.fd").write_bytes(store)
    (folder / "guest.bin").write_bytes(make_image(assemble(_guest(store), 32), 32))
    line = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        *tracing,
        sys.executable,
        "-m",
        "casemate",
        "boot",
        "--host",
        "model",
    ]
    line += [
        "--code",
        "guest.bin",
        "--vars",
        "vars.fd",
        "--json",
        "--report",
        "run.json",
        "--serial",
        "file:serial.log",
    ]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip


def _guest(store: bytes) -> str:
    """Programs the last bytes of the store, which are erased, and leaves."""
    base = (1 << 32) - (64 << 10) - len(store)
    first = base + len(store) - PROGRAMS
    return (
        f"mov edi, {first}; mov al, 1; again: mov byte [edi], 0x40; mov [edi], al; mov byte [edi], 0xff;"
        f" inc edi; inc al; cmp al, {PROGRAMS + 1}; jne again; mov al, 7; out 0xf4, al; jmp $"
    )


def store_fault(folder: Path, programs: int | None) -> str | None:
    """What is wrong with the store: it must have so many of the programs, or any number, the first of them."""
    before, after = variable_store(_CHUNK), (folder / "vars.fd").read_bytes()
    if len(after) != len(before) or after[:-PROGRAMS] != before[:-PROGRAMS]:
        return "the store is another"
    made = after[-PROGRAMS:]
    count = next((n for n, byte in enumerate(made) if byte == 0xFF), PROGRAMS)
    if made != bytes(range(1, count + 1)) + b"\xff" * (PROGRAMS - count):
        return f"the store has programs in another order: {made.hex()}"
    return None if programs in (None, count) else f"the store has {count} programs, not {programs}"


def main() -> int:
    """Run the cases; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=400, metavar="N")
    args = parser.parse_args()
    if shutil.which("strace") is None:
        print("injected_faults: error: there is no strace: install it", file=sys.stderr)
        return 5
    cases, faults = find_cases(args.most), 0
    for case in cases:
        if fault := run(case):
            faults += 1
            print(f"{case.call} on {case.file or 'nothing'} ({case.phase}), {case.error}: {fault}")
    print(f"{len(cases)} faults injected: {faults} ended wrongly")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
