"""What was compiled, and what a process that uses it looks like (docs/decisions/0002-engine-hooks.md)."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import casemate
from casemate import native
from casemate.host.model.cpu import hooks
from casemate.host.model.cpu.msr import MsrTable
from casemate.host.model.cpu.records import CpuRecord, GroupRecord, TickerRecord

PACKAGE = Path(casemate.__file__).parent
BUILD_AGAIN = "install the checkout anew: ./dev does"

RELOCATIONS, JUMP_SLOT = 4, 7

OLD_ENGINE = """
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc, x86_const
CODE = bytes.fromhex("48c7042400200000 0f32 0fa2 8b042400 e2fe 90")  # mov [rsp], 0x2000; rdmsr; cpuid; loop
old = Uc(UC_ARCH_X86, UC_MODE_64)
old.mem_map(0x1000, 0x4000)
old.mem_write(0x1000, CODE)

def run():
    old.reg_write(x86_const.UC_X86_REG_RSP, 0x2000)
    old.reg_write(x86_const.UC_X86_REG_RCX, 5)
    old.emu_start(0x1000, 0x1000 + 12)
    return bytes(old.mem_read(0x2000, 8)), old.reg_read(x86_const.UC_X86_REG_RIP)

before = run()
from casemate.host.clock import GuestClock
from casemate.abi.guest_kind import GuestKind
from casemate.host.model.hypervisor import ModelHypervisor
vm = ModelHypervisor(GuestClock()).create_vm(GuestKind.PLAIN)
assert run() == before
old.mem_write(0x1000, CODE)
assert run() == before
vm.close()
assert run() == before
print("unharmed")
"""

LOOK = """
sizes = set()
for line in open("/proc/self/maps"):
    where, protection, offset, _, _, *name = line.split()
    start, end = (int(at, 16) for at in where.split("-"))
    if protection.startswith("rwx"):
        sizes.add(end - start)
    if protection.startswith("r-x") and name and "libunicorn" in name[0]:
        with open("/proc/self/mem", "rb", 0) as memory, open(name[0], "rb") as file:
            memory.seek(start)
            file.seek(int(offset, 16))
            assert memory.read(end - start) == file.read(end - start), "the engine's code was changed"
            print("code")
print(*sorted(sizes))
"""

ENGINE_ALONE = """
from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_MODE_64, Uc
engine = Uc(UC_ARCH_X86, UC_MODE_64)
engine.mem_map(0x1000, 0x1000)
engine.mem_write(0x1000, b"\\x90\\x90")
engine.hook_add(UC_HOOK_CODE, lambda *_: None)
engine.emu_start(0x1000, 0x1002)
"""

A_GUEST = """
import sys
from casemate.guests.actions import tell
from casemate.guests.entry import make_image
from casemate.machine.boot import boot
from casemate.machine.spec import MachineSpec
open(sys.argv[1], "wb").write(make_image(tell(7), 64))
outcome = boot(MachineSpec(bios=sys.argv[1], memory=16 << 20), timeout=20)
assert outcome.report["exit_port"] == 7, outcome
"""


def hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def test_structures_are_as_large_as_those_of_the_library() -> None:
    mirrors = CpuRecord, MsrTable, GroupRecord, TickerRecord
    assert hooks.sizes() == tuple(ctypes.sizeof(each) for each in mirrors)


def test_library_was_compiled_from_these_sources() -> None:
    sources = [*PACKAGE.glob("native/hooks/*.c"), *PACKAGE.glob("native/hooks/*.h")]
    assert hooks.sources() == hash_files(sources), BUILD_AGAIN


def test_guest_code_was_assembled_from_these_sources() -> None:
    data = json.loads((PACKAGE / "native/guest_code.json").read_text("utf-8"))
    assert data["sources"] == hash_files([*PACKAGE.rglob("*.S"), PACKAGE / "native/piece.h"]), BUILD_AGAIN


def jump_slots(file: bytes) -> dict[str, int]:
    """Where a shared library keeps the addresses of functions that it calls (System V ABI, AMD64 supplement)."""
    (at,) = struct.unpack_from("<Q", file, 0x28)
    size, count = struct.unpack_from("<HH", file, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", file, at + size * number) for number in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind != RELOCATIONS:
            continue
        symbols = sections[link]
        names = sections[symbols[6]]
        for place, info, _ in struct.iter_unpack("<QQq", file[offset : offset + length]):
            if info & 0xFFFFFFFF == JUMP_SLOT:
                (name,) = struct.unpack_from("<I", file, symbols[4] + 24 * (info >> 32))
                start = names[4] + name
                found[file[start : file.index(0, start)].decode()] = place
    return found


def mappings(name: str) -> list[range]:
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [line[0].split("-") for line in lines if line[-1].endswith(name)]
    return [range(int(start, 16), int(end, 16)) for start, end in places]


def test_the_engine_calls_ours_in_place_of_each_function_that_is_replaced() -> None:
    source = (PACKAGE / "native/hooks/engine.h").read_text("utf-8")
    listed = source[source.index("#define REPLACED(X)") :].split("\n\n", 1)[0]
    replaced = {f"{name}_x86_64" for name in re.findall(r"\bX\((\w+),", listed)} | {
        "siglongjmp",
        "abort",
        "exit",
    }
    assert hooks.sources()  # now they are in place
    engine = native.engine()
    slots = jump_slots(engine.read_bytes())
    base = min(each.start for each in mappings(engine.name))
    ours = mappings(native.HOOKS.name)
    theirs = {
        name
        for name in replaced
        if not any(ctypes.c_uint64.from_address(base + slots[name]).value in each for each in ours)
    }
    assert not theirs


def test_engine_made_before_the_hooks_is_unharmed() -> None:
    done = subprocess.run([sys.executable, "-c", OLD_ENGINE], capture_output=True, text=True, check=False)
    assert done.stdout == "unharmed\n", done.stderr


def test_no_code_is_changed_and_nothing_is_writable_and_executable_but_what_the_engine_brings(
    tmp_path: Path,
) -> None:
    def look(program: str) -> tuple[str, set[str]]:
        line = [sys.executable, "-c", program + LOOK, str(tmp_path / "bios.bin")]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        code, sizes = done.stdout.splitlines()
        return code, set(sizes.split())

    code, sizes = look(A_GUEST)
    assert code == "code"
    # The engine's buffer for translations, and the trampolines of ctypes callbacks.
    assert sizes <= look(ENGINE_ALONE)[1]
