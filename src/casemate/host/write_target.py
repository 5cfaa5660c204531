"""Where the instruction at RIP writes to and loads from, by its registers (Intel SDM volume 1, 3.7.5).

KVM says no address with EFAULT; and what it does about a write depends on what the same instruction loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from casemate.abi.kvm.structs import Regs, Segment, Sregs
from casemate.host.decoder import (
    CodeSize,
    Decoder,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
    UsedMemory,
    is_mov,
)

if TYPE_CHECKING:
    from iced_x86 import Register_

_LOADS = (OpAccess.READ, OpAccess.COND_READ)
_STORES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_SEGMENTS = {getattr(Register, name.upper()): name for name in ("cs", "ds", "es", "fs", "gs", "ss")}
_GENERAL = {
    getattr(Register, name.upper()): name for name, *_ in Regs._fields_ if name not in ("rip", "rflags")
}
_ADDRESS_BITS = {CodeSize.CODE16: 16, CodeSize.CODE32: 32, CodeSize.CODE64: 64}


_HIGH_BYTES = {
    Register.AH: Register.AX,
    Register.BH: Register.BX,
    Register.CH: Register.CX,
    Register.DH: Register.DX,
}


class WriteTarget(NamedTuple):
    """A linear address, bytes from there on, and of a plain MOV the value that they get."""

    gva: int
    size: int
    value: int | None


def write_targets(code: bytes, bits: int, regs: Regs, sregs: Sregs) -> Iterator[WriteTarget]:
    """What the first instruction of ``code`` writes to; nothing if it writes to no memory, or cannot be decoded."""
    instruction = Decoder(bits, code, ip=regs.rip).decode()
    if instruction:
        yield from _targets(instruction, bits, regs, sregs)


def load_addresses(code: bytes, bits: int, regs: Regs, sregs: Sregs) -> Iterator[int]:
    """Linear addresses that the first instruction of ``code`` loads from and does not write to."""
    instruction = Decoder(bits, code, ip=regs.rip).decode()
    if instruction:
        for memory in InstructionInfoFactory().info(instruction).used_memory():
            if memory.access in _LOADS:
                yield _linear(memory, bits, regs, sregs)


def _targets(instruction: Instruction, bits: int, regs: Regs, sregs: Sregs) -> Iterator[WriteTarget]:
    for memory in InstructionInfoFactory().info(instruction).used_memory():
        if memory.access in _STORES:
            # Of repeated string instructions only the unit is known.
            size = MemorySizeExt.size(memory.memory_size) or MemorySizeExt.size(instruction.memory_size)
            yield WriteTarget(_linear(memory, bits, regs, sregs), size, _moved_value(instruction, size, regs))


def _moved_value(instruction: Instruction, size: int, regs: Regs) -> int | None:
    if not is_mov(instruction) or instruction.op0_kind != OpKind.MEMORY:
        return None
    if instruction.op1_kind != OpKind.REGISTER:
        return instruction.immediate(1) & (1 << 8 * size) - 1
    register = instruction.op1_register
    if register in _HIGH_BYTES:
        return _value(_HIGH_BYTES[register], regs) >> 8 & 0xFF
    return _value(register, regs) if RegisterExt.is_gpr(register) else None


def find_write(
    before: bytes,
    code: bytes,
    bits: int,
    regs: Regs,
    sregs: Sregs,
    is_target: Callable[[int], bool],
    size: int,
) -> int | None:
    """Where the instruction begins that written ``size`` bytes to a linear address that ``is_target`` knows.

    ``code`` is at RIP, ``before`` ends there. Code cannot be decoded backwards, so each candidate must explain the
    write: it ends at RIP, or repeats and stands there; the shortest counts, for what precedes can look like a prefix
    (so that a LOCK prefix is not told).
    """
    found: int | None = None
    for back in range(len(before) + 1):
        start: int = regs.rip - back
        candidate = before[len(before) - back :] if back else code
        instruction = Decoder(bits, candidate, ip=start).decode()
        if not instruction or (instruction.len != back if back else not instruction.has_rep_prefix):
            continue
        for target in _targets(instruction, bits, regs, sregs):
            # String and stack instructions have moved their pointers on.
            moves = instruction.is_string_instruction or instruction.is_stack_instruction
            moved = (-target.size, target.size) if moves else (0,)
            # KVM reports wide writes in parts of 8 bytes.
            if (target.size == size or target.size > 8) and any(
                is_target(target.gva + step) for step in moved
            ):
                found = found or start
                if instruction.op1_register not in _HIGH_BYTES:  # else it likely has a REX prefix
                    return start
    return found


def _linear(memory: UsedMemory, bits: int, regs: Regs, sregs: Sregs) -> int:
    offset = memory.displacement
    offset += _value(memory.base, regs) + _value(memory.index, regs) * memory.scale
    offset &= (1 << _ADDRESS_BITS.get(memory.address_size, bits)) - 1
    segment = _SEGMENTS.get(memory.segment)
    flat = bits == 64 and segment not in ("fs", "gs")
    base = 0 if flat or segment is None else _segment(sregs, segment).base
    return (base + offset) & (1 << (64 if bits == 64 else 32)) - 1


def _segment(sregs: Sregs, name: str) -> Segment:
    segment: Segment = getattr(sregs, name)
    return segment


def _value(register: Register_, regs: Regs) -> int:
    name = _GENERAL.get(RegisterExt.full_register(register)) if register != Register.NONE else None
    if name is None:
        return 0
    value: int = getattr(regs, name)
    return value & (1 << 8 * RegisterExt.size(register)) - 1
