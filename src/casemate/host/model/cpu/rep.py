"""REP MOVS and REP STOS done by the host in one go, as fast-string operation (Intel SDM volume 1, 7.3.9).

Addresses are translated page by page, so that it is right when guest-virtual is not guest-physical. Whatever is not
plain memory-to-memory forwards (overlap, DF set, MMIO, protected or unmapped memory) is left to the engine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from casemate.address import PAGE_SIZE
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.engine import READ, WRITE, Engine
from casemate.host.model.physical_memory import PhysicalMemory

_DF = 1 << 10
_WORTH_IT = 4
_64_BIT = 1 << 64


@dataclass(frozen=True, slots=True)
class StringInstruction:
    """Whether it copies (MOVS) or fills (STOS), and the bytes of one element."""

    copies: bool
    width: int


INSTRUCTIONS = {
    b"\xf3\xa4": StringInstruction(True, 1),
    b"\xf3\xa5": StringInstruction(True, 4),
    b"\xf3\x48\xa5": StringInstruction(True, 8),
    b"\xf3\xaa": StringInstruction(False, 1),
    b"\xf3\xab": StringInstruction(False, 4),
    b"\xf3\x48\xab": StringInstruction(False, 8),
}


def run(
    cpu: Engine, memory: PhysicalMemory, kind: StringInstruction, written: Callable[[int, int, int], None]
) -> None:
    """Do the instruction at RIP as far as it is plain memory; RCX says what is left for the engine."""
    rax, rcx, rsi, rdi, rflags = cpu.read_many(
        (registers.RAX, registers.RCX, registers.RSI, registers.RDI, registers.RFLAGS)
    )
    size = rcx * kind.width
    overlaps = kind.copies and rsi < rdi < rsi + size
    if rcx < _WORTH_IT or rflags & _DF or overlaps or max(rsi, rdi) + size >= _64_BIT:
        return
    fill = (rax & (1 << 8 * kind.width) - 1).to_bytes(kind.width, "little")
    done = 0
    while done < size:
        piece = _piece(cpu, memory, kind, rsi + done, rdi + done, size - done)
        if piece is None:
            break
        target, source, gpa, length = piece
        if kind.copies:
            ctypes.memmove(target, source, length)
        else:
            ctypes.memmove(target, fill * (length // kind.width), length)
        written(rdi + done, gpa, length)
        done += length
    if done:
        cpu.write(registers.RDI, rdi + done)
        if kind.copies:
            cpu.write(registers.RSI, rsi + done)
        cpu.write(registers.RCX, rcx - done // kind.width)


def _piece(
    cpu: Engine, memory: PhysicalMemory, kind: StringInstruction, rsi: int, rdi: int, size: int
) -> tuple[int, int, int, int] | None:
    """Host target, host source, guest-physical target and bytes of the next run within one page each."""
    length = min(size, PAGE_SIZE - rdi % PAGE_SIZE)
    source: int | None = 0
    if kind.copies:
        length = min(length, PAGE_SIZE - rsi % PAGE_SIZE)
        source_gpa = cpu.translate(rsi, READ)
        source = None if source_gpa is None else memory.hva(source_gpa, length, writable=False)
    length -= length % kind.width
    gpa = cpu.translate(rdi, WRITE)
    target = None if gpa is None or not length else memory.hva(gpa, length, writable=True)
    if target is None or source is None or gpa is None:
        return None
    return target, source, gpa, length
