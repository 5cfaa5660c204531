"""The guest that runs streams in user mode, and what it leaves in memory of each (Intel SDM volume 3, 4.5, 6.14, 8.7).

Every case has a window of four pages of memory: the state of x87 and SSE, that of the rest (the supervisor's alone),
code and data. User mode sees the code and the data of one case, always at the same addresses. The processor itself
pushes the frame of whatever ended the case into the page of its state, for RSP0 points there; so the guest's own part
is some sixty instructions for each case. FXSAVE and FXRSTOR are executed in user mode, where KVM need not emulate them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from support.assembler import assemble

from casemate.address import PAGE_SIZE
from tools.cpu_differences.streams import CODE, DATA, USER, Stream

MONITOR, SETUP, STUBS, IDT, GDT = 0x10000, 0x10800, 0x11000, 0x12000, 0x13000
TSS, POINTERS, SWITCH_FRAME, STACK_TOP, SWITCH = 0x14000, 0x15000, 0x15040, 0x17000, 0x18000
TABLES = 0x200000
"""Page tables, which Python fills: PML4, PDPT, page directory, and the page table of user mode."""
WINDOWS = 0x400000
"""The first window, which has no case; below is the monitor's memory."""
WINDOW = 4 * PAGE_SIZE
END_PORT = 0xF4
"""Where the monitor writes when all cases are done."""
START = f"mov eax, {SETUP:#x}; jmp rax"
"""What the image of firmware executes in 64-bit mode."""

_SAVED, _LOADED, _SWITCH_CODE = USER + 0x100000, USER + 0x101000, USER + 0x102000
"""Where user mode sees the state of x87 and SSE of the case before, that of the next one, and the code for both."""
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
_OPEN = _PRESENT | _WRITABLE | _USER
_PAGE_TABLE = TABLES + 3 * PAGE_SIZE
_FLOATING, _STATE, _CODE, _DATA = (index * PAGE_SIZE for index in range(4))
_SAVED_AT, _ENTRIES_AT, _STACK_TOP = 0x200, 0x100, 0x800
"""In the first page, and in that of the state, which starts with what is popped."""
_VIEWS = (_SAVED, _LOADED, CODE, DATA)
"""Whose entries of the page table are those of a case."""
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
        end = WINDOWS + (len(self.streams) + 1) * WINDOW
        pieces = {
            MONITOR: assemble(_source(end), 64, origin=MONITOR),
            SETUP: assemble(_SETUP, 64, origin=SETUP),
            STUBS: _stubs(),
            IDT: b"".join(gate),
            GDT: struct.pack("<8Q", *_DESCRIPTORS) + task,
            POINTERS: struct.pack("<HQ", 8 * len(_DESCRIPTORS) + 15, GDT),
            POINTERS + 0x20: struct.pack("<HQ", 16 * _VECTORS - 1, IDT),
            SWITCH: _SWITCH,
            SWITCH_FRAME: struct.pack("<5Q", _SWITCH_CODE, _USER_CODE[64], 2, 0, _USER_DATA),
            TABLES: _tables(end),
        }
        for at, data in pieces.items():
            memory[at : at + len(data)] = data
        return bytes(memory)

    def windows(self) -> bytes:
        """What is from ``WINDOWS`` on."""
        first, last = WINDOWS, WINDOWS + len(self.streams) * WINDOW
        pages = {_STATE: bytes(_ENTRIES_AT) + _entries(last, first)}
        windows = [_window(pages)]
        for index, stream in enumerate(self.streams):
            before = WINDOWS + index * WINDOW
            pages = {
                _FLOATING: stream.floating,
                _STATE: _first_state(stream).ljust(_ENTRIES_AT, b"\0") + _entries(before, before + WINDOW),
                _CODE: b"".join(stream.code).ljust(PAGE_SIZE, b"\xcc"),
                _DATA: stream.memory,
            }
            windows.append(_window(pages))
        return b"".join(windows)

    def results(self, windows: memoryview) -> list[Result]:
        """Of each case, from the memory that the guest left."""
        return [
            _result(windows[at : at + WINDOW])
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


def _source(end: int) -> str:
    """The end of a case, and the beginning of the next one; RBX is at its state."""
    names = [_NAMES[number] for number in _ORDER]
    views = [
        f"mov rax, [rbx + {_ENTRIES_AT + 8 * index}]; mov [{_PAGE_TABLE + (view - USER) // PAGE_SIZE * 8:#x}], rax"
        for index, view in enumerate(_VIEWS)
    ]
    return f"""
        cmp qword [rsp + 16], {_SWITCH_CODE + len(_SWITCH):#x}
        je next
        {"; ".join(f"push {name}" for name in names)}
        mov rax, cr2
        push rax
        lea rbx, [rsp + {WINDOW - _STACK_TOP + 8 * _PUSHED:#x}]
        mov ecx, {WINDOWS + _STATE:#x}
        cmp rbx, {end + _STATE:#x}
        cmove rbx, rcx
        {"; ".join(views)}
        mov rax, cr3
        mov cr3, rax
        mov qword [{TSS + 4:#x}], {STACK_TOP:#x}
        mov esp, {SWITCH_FRAME:#x}
        mov eax, {_SAVED:#x}
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
_SWITCH = assemble(f"fxsave64 [rax + {_SAVED_AT:#x}]; fxrstor64 [rax + {_LOADED - _SAVED:#x}]; int3", 64)


def _tables(end: int) -> bytes:
    """One to one, the supervisor's alone, up to ``end``; and the page table of user mode."""
    large = range(0, end, 0x200000)
    directory = {address // 0x200000: address | _PRESENT | _WRITABLE | _LARGE for address in large}
    levels = (
        {0: TABLES + PAGE_SIZE | _OPEN},
        {0: TABLES + 2 * PAGE_SIZE | _OPEN},
        {**directory, USER // 0x200000: _PAGE_TABLE | _OPEN},
        {(_SWITCH_CODE - USER) // PAGE_SIZE: SWITCH | _PRESENT | _USER},
    )
    return b"".join(struct.pack("<512Q", *(level.get(index, 0) for index in range(512))) for level in levels)


def _entries(before: int, window: int) -> bytes:
    """What the page table gets for a case."""
    pages = (before + _FLOATING | _OPEN, window + _FLOATING | _OPEN, window + _CODE | _PRESENT | _USER)
    return struct.pack("<4Q", *pages, window + _DATA | _OPEN)


def _window(pages: Mapping[int, bytes]) -> bytes:
    return b"".join(pages.get(at, b"").ljust(PAGE_SIZE, b"\0") for at in range(0, WINDOW, PAGE_SIZE))


def _first_state(stream: Stream) -> bytes:
    frame = (CODE, _USER_CODE[stream.bits], stream.flags, stream.registers[4], _USER_DATA)
    return struct.pack("<20Q", *(stream.registers[number] for number in reversed(_ORDER)), *frame)


def _result(window: memoryview) -> Result:
    words = struct.unpack_from(f"<{_PUSHED}Q", window, _STATE + _STACK_TOP - 8 * _PUSHED)
    cr2, general, (vector, error, rip, _, flags, rsp, _) = words[0], words[1:-7], words[-7:]
    registers = dict(zip(reversed(_ORDER), general, strict=True)) | {4: rsp}
    floating = bytes(window[_FLOATING + _SAVED_AT : _FLOATING + _SAVED_AT + 512])
    return Result(
        vector,
        error,
        rip - CODE,
        cr2 if vector == 14 else 0,
        tuple(registers[number] for number in range(16)),
        flags,
        floating[:5] + b"".join(floating[at : at + 10] for at in range(32, 160, 16)),
        struct.unpack_from("<I", floating, 24)[0],
        floating[160:416],
        bytes(window[_DATA : _DATA + PAGE_SIZE]),
    )
