"""Random code on the modelled CPU, instruction by instruction (Intel SDM volumes 2 and 3).

The code runs in user mode of 64, 32 and 16 bits with the trap flag set, at each byte of a random page in turn; a
handler that it cannot reach counts, and goes on at the next byte. The guest is a plain one, or one of SEV-ES, which
gets a #VC for what its host would have to do. Whatever the instructions are, the engine must neither end this process
nor give up.
"""

from __future__ import annotations

import random
import struct
import threading
import time

from hypothesis import given
from hypothesis import strategies as st
from support.guest_rig import ModelRig, Rig
from test_model_sev_es import SevRig

from casemate.guests.entry import PAGE_TABLES
from casemate.host.exits import Interrupted
from fuzz.target import Target, count, quick

# The first 2 MiB are the supervisor's, the second ones are open.
IDT, GDT, TSS, HANDLER, COUNT, STACK = 0x10000, 0x12000, 0x13000, 0x14000, 0x15000, 0x17000
POINTERS = 0x16000
CODE, DATA, USER_STACK, CODE_BYTES = 0x200000, 0x202000, 0x204000, 0x1000
CODE64, USER_DATA, USER_CODE64, USER_CODE32, USER_CODE16, TASK = 0x18, 0x23, 0x2B, 0x33, 0x3B, 0x40
DESCRIPTORS = (
    *(0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF),
    *(0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CFFB000000FFFF, 0x000FFB200000FFFF),
)
MODES = {64: (USER_CODE64, CODE), 32: (USER_CODE32, CODE), 16: (USER_CODE16, 0)}
TRAP_FLAG = 0x102
PREFIXES = b"\x66\x67\xf0\xf2\xf3\x26\x2e\x36\x3e\x64\x65\x48\x41\x4c" + b"\x0f" * 8
INSTRUCTIONS = 2 * CODE_BYTES
"""Of one input."""
SECONDS = 30


def word(value: int) -> bytes:
    return struct.pack("<I", value)


def handler(bits: int) -> bytes:
    """Count, and go on at the byte of that number, with some registers that point to memory."""
    selector, start = MODES[bits]
    pushes = b"".join(b"\x68" + word(value) for value in (USER_DATA, USER_STACK, TRAP_FLAG, selector))
    return (
        b"\x48\xff\x04\x25" + word(COUNT)  # inc qword [COUNT]
        + b"\x48\x8b\x04\x25" + word(COUNT)  # mov rax, [COUNT]
        + b"\x25" + word(CODE_BYTES - 1) + b"\x05" + word(start)  # and eax, CODE_BYTES - 1; add eax, start
        + b"\xbc" + word(STACK) + pushes + b"\x50"  # mov esp, STACK; push SS, RSP, RFLAGS, CS; push rax
        + b"".join(opcode + word(DATA) for opcode in (b"\xbb", b"\xbe", b"\xbf"))  # mov ebx, esi, edi, DATA
        + b"\x48\xcf"  # iretq
    )  # fmt: skip


def prologue() -> bytes:
    """Open the second 2 MiB to user mode, load the tables, and jump to the handler."""
    entries = b"".join(
        b"\x80\x0c\x25" + word(at) + b"\x04"
        for at in (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2008)
    )
    return (
        entries + b"\x0f\x20\xd8\x0f\x22\xd8"  # or byte [entry], user; mov rax, cr3; mov cr3, rax
        + b"\x0f\x01\x14\x25" + word(POINTERS) + b"\x0f\x01\x1c\x25" + word(POINTERS + 0x20)  # lgdt, lidt
        + b"\xb8" + word(TASK) + b"\x0f\x00\xd8"  # mov eax, TASK; ltr ax
        + b"\xb8" + word(HANDLER) + b"\xff\xe0"  # mov eax, HANDLER; jmp rax
    )  # fmt: skip


def random_code(rng: random.Random) -> bytes:
    """Bytes that are instructions more often than those of chance."""
    return bytes(
        rng.choice(PREFIXES) if rng.random() < 0.3 else rng.randrange(256) for _ in range(CODE_BYTES)
    )


def set_up(rig: Rig, bits: int, code: bytes) -> None:
    """Tables, the handler, and the code with empty memory behind it."""
    view = rig.ram.writable.view
    task = struct.pack("<HHBBBBII", 103, TSS & 0xFFFF, TSS >> 16, 0x89, 0, 0, 0, 0)
    gate = struct.pack("<HHBBHQ", HANDLER & 0xFFFF, CODE64, 0, 0xEE, HANDLER >> 16, 0)
    pieces = {
        GDT: struct.pack("<8Q", *DESCRIPTORS) + task,
        POINTERS: struct.pack("<HQ", 8 * len(DESCRIPTORS) + 15, GDT),
        POINTERS + 0x20: struct.pack("<HQ", 256 * 16 - 1, IDT),
        IDT: gate * 256,
        TSS + 4: struct.pack("<Q", STACK),
        HANDLER: handler(bits),
        CODE: code + bytes(0x1000),
    }
    for at, data in pieces.items():
        view[at : at + len(data)] = data


def execute(rig: Rig) -> None:
    """Some thousands of instructions; AssertionError if the engine ends before."""
    view = rig.ram.writable.view
    over = threading.Event()

    def watch() -> None:
        ends = time.monotonic() + SECONDS
        while not over.wait(0.005):
            if struct.unpack_from("<Q", view, COUNT)[0] >= INSTRUCTIONS or time.monotonic() > ends:
                rig.vcpu.stop()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        end = rig.vcpu.run()
    finally:
        over.set()
        thread.join()
    executed: int = struct.unpack_from("<Q", view, COUNT)[0]
    count(executed)
    assert isinstance(end, Interrupted), f"{end} after {executed} instructions"
    assert executed >= INSTRUCTIONS, f"{executed} instructions in {SECONDS} seconds"


@quick(24)
@given(st.sampled_from((64, 32, 16)), st.booleans(), st.integers(0, (1 << 32) - 1), st.binary(max_size=32))
def check(bits: int, encrypted: bool, seed: int, head: bytes) -> None:
    """Random code, with what the engine of the fuzzer chose at its start."""
    code = (head + random_code(random.Random(seed)))[:CODE_BYTES]
    with SevRig(prologue(), bits=64) if encrypted else ModelRig(prologue(), 64) as rig:
        set_up(rig, bits, code)
        execute(rig)


TARGET = Target(
    "instructions",
    "random code in 64, 32 and 16 bits, of plain and of SEV-ES guests",
    check,
    "instructions",
    memory=3 << 30,  # of which one GiB is the engine's, for its translations
)
