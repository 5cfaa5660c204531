"""The guest that runs streams in user mode, and what it leaves in memory of each (Intel SDM volume 3, 6.14 and 8.7).

Every case has a window of five pages: the state of x87 and SSE, that of the rest (the supervisor's alone), code
(read-only), data, and one that is not there. The processor itself pushes the frame of whatever ended the case into the
page of its state, for RSP0 points there; so the guest's own part is some fifty instructions for each case. FXSAVE and
FXRSTOR are executed in user mode, where KVM need not emulate them; that code is in the first window, which has no case.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from support.assembler import assemble

from casemate.address import PAGE_SIZE
from tools.cpu_differences.streams import Stream

MONITOR, SETUP, STUBS, IDT, GDT = 0x10000, 0x10800, 0x11000, 0x12000, 0x13000
TSS, POINTERS, SWITCH_FRAME, STACK_TOP = 0x14000, 0x15000, 0x15040, 0x17000
TABLES = 0x200000
"""Page tables, which Python fills: PML4, PDPT, page directory, page tables."""
WINDOWS = 0x400000
"""The first window, the monitor's own; below is its other memory."""
WINDOW = 5 * PAGE_SIZE
MAX_CASES = 4096
END_PORT = 0xF4
"""Where the monitor writes when all cases are done."""

_CODE64, _TASK, _USER_DATA = 0x18, 0x40, 0x23
_USER_CODE = {64: 0x2B, 32: 0x33}
_DESCRIPTORS = (
    *(0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF),
    *(0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CFFB000000FFFF, 0),
)
_VECTORS = 32
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)
_BREAKPOINT = 3
_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_FLOATING, _STATE, _CODE, _DATA = (index * PAGE_SIZE for index in range(4))
_SAVED_AT, _STACK_TOP = 0x200, 0x800
"""In the first page, and in that of the state, which starts with what is popped."""
_ORDER = (0, 1, 2, 3, *range(5, 16))
"""Numbers of the general registers in the order in which they are pushed; RSP is in the frame."""
_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_PUSHED = len(_ORDER) + 8
"""Quadwords of a state: CR2, the registers, the vector, the error code and the frame."""


class Result(NamedTuple):
    """How a case ended, and with what."""

    vector: int
    error: int
    rip: int
    """From the first instruction."""
    cr2: int
    """0 if it was no page fault."""
    registers: tuple[int, ...]
    flags: int
    x87: bytes
    """Control and status word, tags, and the registers."""
    mxcsr: int
    vectors: bytes
    memory: bytes

    @property
    def at_end(self) -> bool:
        """No instruction faulted."""
        return self.vector == _BREAKPOINT


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases for one start of a guest."""

    streams: Sequence[Stream]

    def low_memory(self) -> bytes:
        """What is from 0 to ``WINDOWS``."""
        memory = bytearray(WINDOWS)
        gate = [
            struct.pack("<HHBBHQ", STUBS + 16 * vector & 0xFFFF, _CODE64, 0, 0xEE, STUBS >> 16, 0)
            for vector in range(_VECTORS)
        ]
        task = struct.pack("<HHBBBBII", 103, TSS & 0xFFFF, TSS >> 16, 0x89, 0, 0, 0, 0)
        pieces = {
            MONITOR: assemble(_source(len(self.streams)), 64, origin=MONITOR),
            SETUP: assemble(_SETUP, 64, origin=SETUP),
            STUBS: _stubs(),
            IDT: b"".join(gate),
            GDT: struct.pack("<8Q", *_DESCRIPTORS) + task,
            POINTERS: struct.pack("<HQ", 8 * len(_DESCRIPTORS) + 15, GDT),
            POINTERS + 0x20: struct.pack("<HQ", 16 * _VECTORS - 1, IDT),
            SWITCH_FRAME: struct.pack("<5Q", WINDOWS + _CODE, _USER_CODE[64], 2, 0, _USER_DATA),
            TABLES: _tables(len(self.streams)),
        }
        for at, data in pieces.items():
            memory[at : at + len(data)] = data
        return bytes(memory)

    def windows(self) -> bytes:
        """What is from ``WINDOWS`` on."""
        windows = bytearray(WINDOW * (len(self.streams) + 1))
        windows[_CODE : _CODE + len(_SWITCH)] = _SWITCH
        for index, stream in enumerate(self.streams):
            at = (index + 1) * WINDOW
            windows[at : at + WINDOW] = _window(WINDOWS + at, stream)
        return bytes(windows)

    def results(self, windows: memoryview) -> list[Result]:
        """Of each case, from the memory that the guest left."""
        return [
            _result(windows[at : at + WINDOW], WINDOWS + at)
            for at in range(WINDOW, WINDOW * (len(self.streams) + 1), WINDOW)
        ]


@cache
def _stubs() -> bytes:
    """What each vector executes first, 16 bytes apart: pushes of a zero for a missing error code, and of the vector."""
    code = b""
    for vector in range(_VECTORS):
        error = "" if vector in _WITH_ERROR_CODE else "push 0;"
        source = f"{error} push {vector}; jmp {MONITOR:#x}"
        code += assemble(source, 64, origin=STUBS + 16 * vector).ljust(16, b"\x90")
    return code


def _source(cases: int) -> str:
    """The end of a case, and the beginning of the next one; RBX is at its state."""
    names = [_NAMES[number] for number in _ORDER]
    return f"""
        cmp qword [rsp + 16], {_SWITCHED:#x}
        je next
        {"; ".join(f"push {name}" for name in names)}
        mov rax, cr2
        push rax
        lea rbx, [rsp + {WINDOW - _STACK_TOP + 8 * _PUSHED:#x}]
        mov ecx, {WINDOWS + _STATE:#x}
        cmp rbx, {WINDOWS + WINDOW * (cases + 1) + _STATE:#x}
        cmove rbx, rcx
        lea rax, [rsp + {_FLOATING + _SAVED_AT - _STATE - _STACK_TOP + 8 * _PUSHED}]
        mov qword [{TSS + 4:#x}], {STACK_TOP:#x}
        mov esp, {SWITCH_FRAME:#x}
        iretq
next:   cmp rbx, {WINDOWS + _STATE:#x}
        je end
        lea rax, [rbx + {_STACK_TOP:#x}]
        mov [{TSS + 4:#x}], rax
        mov rsp, rbx
        {"; ".join(f"pop {name}" for name in reversed(names))}
        iretq
end:    out {END_PORT:#x}, al
        cli
        hlt
    """


_SETUP = f"""
        mov eax, {TABLES:#x}
        mov cr3, rax
        lgdt [{POINTERS:#x}]
        lidt [{POINTERS + 0x20:#x}]
        mov eax, {_TASK:#x}
        ltr ax
        mov rax, cr0
        and eax, -0xd           # EM, TS
        or eax, 0x22            # MP, NE: x87 errors are #MF
        mov cr0, rax
        mov esp, {WINDOWS + _STATE + _STACK_TOP - 56:#x}
        jmp {MONITOR:#x}        # as if a case had ended in the first window
"""
_SWITCH = assemble(
    f"""
        fxsave64 [rax]
        fxrstor64 [rbx - {_STATE - _FLOATING:#x}]
        mov cl, [rbx + {_CODE - _STATE:#x}]
        mov cl, [rbx + {_DATA - _STATE:#x}]
        mov [rbx + {_DATA - _STATE:#x}], cl
        int3
    """,
    64,
)
_SWITCHED = WINDOWS + _CODE + len(_SWITCH)
START = f"mov eax, {SETUP:#x}; jmp rax"
"""What the image of firmware executes in 64-bit mode."""


def _tables(cases: int) -> bytes:
    """One to one: the monitor's memory for itself, the windows as the module says."""
    open_to_all = _PRESENT | _WRITABLE | _USER
    rights = {
        _FLOATING: open_to_all,
        _STATE: _PRESENT | _WRITABLE,
        _CODE: _PRESENT | _USER,
        _DATA: open_to_all,
    }
    entries = [
        WINDOWS + offset | rights[offset % WINDOW] if offset % WINDOW in rights else 0
        for offset in range(0, WINDOW * (cases + 1), PAGE_SIZE)
    ]
    tables = struct.pack(f"<{len(entries)}Q", *entries)
    directory = [address | _PRESENT | _WRITABLE | _LARGE for address in (0, 0x200000)]
    directory += [TABLES + at + 3 * PAGE_SIZE | open_to_all for at in range(0, len(tables), PAGE_SIZE)]
    upper = [struct.pack("<Q", TABLES + (1 + level) * PAGE_SIZE | open_to_all) for level in range(2)]
    lower = struct.pack(f"<{len(directory)}Q", *directory)
    return b"".join(page.ljust(PAGE_SIZE, b"\0") for page in (*upper, lower)) + tables


def _window(base: int, stream: Stream) -> bytes:
    registers = [value.number + value.is_pointer * (base + _DATA) for value in stream.registers]
    frame = (base + _CODE, _USER_CODE[stream.bits], stream.flags, registers[4], _USER_DATA)
    general = [registers[number] for number in reversed(_ORDER)]
    pages = {
        _FLOATING: stream.floating,
        _STATE: struct.pack("<20Q", *general, *frame),
        _CODE: b"".join(stream.code).ljust(PAGE_SIZE, b"\xcc"),
        _DATA: stream.memory,
    }
    return b"".join(page.ljust(PAGE_SIZE, b"\0") for page in (*pages.values(), b""))


def _result(window: memoryview, base: int) -> Result:
    words = struct.unpack_from(f"<{_PUSHED}Q", window, _STATE + _STACK_TOP - 8 * _PUSHED)
    cr2, general, (vector, error, rip, _, flags, rsp, _) = words[0], words[1:-7], words[-7:]
    registers = dict(zip(reversed(_ORDER), general, strict=True)) | {4: rsp}
    floating = bytes(window[_FLOATING + _SAVED_AT : _FLOATING + _SAVED_AT + 512])
    return Result(
        vector,
        error,
        rip - base - _CODE,
        cr2 if vector == 14 else 0,
        tuple(registers[number] for number in range(16)),
        flags,
        floating[:5] + b"".join(floating[at : at + 10] for at in range(32, 160, 16)),
        struct.unpack_from("<I", floating, 24)[0],
        floating[160:416],
        bytes(window[_DATA : _DATA + PAGE_SIZE]),
    )
