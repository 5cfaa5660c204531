"""Exceptions and interrupts by the engine's public API, at one privilege level (Intel SDM volume 3, chapter 6).

By that API the engine delivers nothing itself (``native_delivery`` does without it). Real mode and changes of privilege
need segment state that it cannot set; they are reported, not guessed. Firmware needs neither.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.engine import Engine

DOUBLE_FAULT = 8
INVALID_OPCODE = 6
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})

_CR0_PE, _CR0_PG = 1 << 0, 1 << 31
_RFLAGS_IF = 1 << 9
_RFLAGS_CLEARED = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17  # TF, NT, RF, VM
_INTERRUPT_GATES = (0xE, 0x6)
_TRAP_GATES = (0xF, 0x7)


class CannotDeliverError(Exception):
    """The guest's own tables do not allow it: the CPU would raise a double fault."""


class NotModelledError(Exception):
    """The tables allow it, and this CPU cannot do it."""


@dataclass(frozen=True, slots=True)
class _Gate:
    selector: int
    offset: int
    kind: int
    stack_table_entry: int


def deliver_exception(cpu: Engine, vector: int) -> None:
    """Push a frame and jump to the handler; the API tells no error code, it is 0. Raises as ``deliver``."""
    cpu.forget_exception(vector)
    deliver(cpu, vector, 0 if vector in _WITH_ERROR_CODE else None)


def deliver(cpu: Engine, vector: int, error_code: int | None = None) -> None:
    """Push a frame and jump to the handler of ``vector``. Raises CannotDeliverError or NotModelledError."""
    cr0 = cpu.read(registers.CR0)
    if not cr0 & _CR0_PE:
        raise NotModelledError(f"interrupt {vector:#x} in real mode")
    long_mode = bool(cpu.uc.msr_read(0xC0000080) & 1 << 10) if cr0 & _CR0_PG else False
    gate = _read_gate(cpu, vector, long_mode)
    rip, rsp, rflags, cs, ss = cpu.read_many(
        (registers.RIP, registers.RSP, registers.RFLAGS, registers.CS, registers.SS)
    )
    _check_target(cpu, gate, cs)
    if long_mode:
        words = [ss, rsp, rflags, cs, rip] + ([] if error_code is None else [error_code])
        new_rsp = (rsp & ~15) - 8 * len(words)
        frame = struct.pack(f"<{len(words)}Q", *reversed(words))
    else:
        words = [rflags, cs, rip] + ([] if error_code is None else [error_code])
        new_rsp = (rsp - 4 * len(words)) & 0xFFFFFFFF
        frame = struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in reversed(words)))
    if not cpu.write_virtual(new_rsp, frame):
        raise CannotDeliverError(f"no stack at {new_rsp:#x}")
    cleared = _RFLAGS_CLEARED | (_RFLAGS_IF if gate.kind in _INTERRUPT_GATES else 0)
    values = {registers.RSP: new_rsp, registers.RFLAGS: rflags & ~cleared, registers.RIP: gate.offset}
    if gate.selector != cs:
        values[registers.CS] = gate.selector
    cpu.write_many(values)


def _read_gate(cpu: Engine, vector: int, long_mode: bool) -> _Gate:
    base, limit = cpu.table_register(registers.IDTR)
    size = 16 if long_mode else 8
    if vector * size + size - 1 > limit:
        raise CannotDeliverError(f"vector {vector:#x} is behind the IDT's limit {limit:#x}")
    data = cpu.read_virtual(base + vector * size, size)
    if data is None:
        raise CannotDeliverError(f"the IDT at {base:#x} is not mapped")
    low, selector, stack, attributes, middle = struct.unpack_from("<HHBBH", data)
    high = struct.unpack_from("<I", data, 8)[0] if long_mode else 0
    kind = attributes & 0x1F
    if not attributes & 0x80 or kind not in _INTERRUPT_GATES + _TRAP_GATES:
        raise CannotDeliverError(f"gate {vector:#x} is not present or no interrupt or trap gate")
    if kind in (0x6, 0x7):
        raise NotModelledError(f"vector {vector:#x} through a 16-bit gate")
    return _Gate(selector, low | middle << 16 | high << 32, kind, stack & 7)


def _check_target(cpu: Engine, gate: _Gate, cs: int) -> None:
    if gate.stack_table_entry:
        raise NotModelledError("a gate with an interrupt stack table entry")
    if gate.selector == cs:
        return
    if gate.selector & ~3 == 0:
        raise CannotDeliverError("a gate with a null selector")
    if (cs & 3) != (gate.selector & 3) or _descriptor(cpu, cs) != _descriptor(cpu, gate.selector):
        raise NotModelledError(f"an interrupt from code segment {cs:#x} to {gate.selector:#x}")


def _descriptor(cpu: Engine, selector: int) -> bytes | None:
    base, limit = cpu.table_register(registers.GDTR)
    index = selector & ~7
    if index + 7 > limit:
        raise CannotDeliverError(f"selector {selector:#x} is behind the GDT's limit")
    data = cpu.read_virtual(base + index, 8)
    # The accessed bit says nothing about the segment.
    return data and data[:5] + bytes([data[5] & ~1]) + data[6:]
